// A killed process gives its memory back before it closes its descriptors (do_exit() in the kernel's
// kernel/exit.c: exit_mm() comes before exit_files()). With a guest's RAM mapped and its shadow that takes
// some ten milliseconds a gigabyte and more, and so long its peers take it for alive. The keeper is a second
// process in the same memory, with nothing of the first open: the memory is given back with the keeper, after
// the connections are closed.
#pragma once

namespace colo {

// Starts this process's keeper, if it has none; it ends when the last thread of the process has. False where
// the processor is one that we have none for. Throws ERR_COLO_RESOURCES. Any thread.
bool start_memory_keeper();

}  // namespace colo
