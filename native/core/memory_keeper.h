// A killed process gives its memory back before it closes its descriptors (do_exit() in the kernel's
// kernel/exit.c: exit_mm() comes before exit_files()). With a guest's RAM mapped and its shadow that takes
// some ten milliseconds a gigabyte and more, and so long its peers take it for alive. The keeper is a second
// process in the same memory, without descriptors: the memory is given back with the keeper, after the
// connections are closed.
#pragma once

namespace colo {

// Starts this process's keeper, if it has none, which ends right after the calling thread: call it from the
// main one. False where the processor is one that we have none for. Throws ERR_COLO_RESOURCES. Any thread.
bool start_memory_keeper();

}  // namespace colo
