// System calls that run inside another process: the one thing that a tracker needs from a QEMU that knows
// nothing of it.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>

#include "unique_fd.h"

namespace colo {

struct RemoteCall {
  long number = 0;
  std::array<std::uint64_t, 6> arguments{};
};

// Runs `call`, which must return a new descriptor, in the main thread of process `pid` by ptrace(2), takes a
// duplicate (pidfd_getfd(2)) and closes the original in the same stop: afterwards the process is as it was,
// and the descriptor (CLOEXEC) is ours alone.
//
// How the process stays unharmed (INVARIANT 7):
//
// The tracer is a short-lived process of its own that shares our memory and descriptors (clone(2) with
// CLONE_VM, CLONE_FILES and CLONE_VFORK). A SIGKILL of the agent doesn't end it, so the thread always gets
// its registers back; and a library here that waits for children (libuv does) never sees a ptrace stop of a
// QEMU that is one of them.
//
// The thread is taken only from a stop of our own (PTRACE_INTERRUPT): a system call that it was in is
// restarted by the kernel as after any stop. Signals that come before are delivered, later ones stay blocked
// until the thread is released, a group stop (SIGSTOP) stays in force.
//
// Nothing but one `syscall` instruction is run, in the vdso or, without one, in any executable mapping. When
// a seccomp filter answers it with a trap, the call is given up and the signal discarded.
//
// Throws ERR_COLO_INJECTION with sys_errno: ENOSYS on an architecture other than x86-64; EINVAL when the
// process runs 32-bit code or has no `syscall` instruction; EPERM when ptrace isn't permitted, another tracer
// (a debugger) is attached or seccomp refuses; ESRCH when the process is gone; ETIMEDOUT when the main thread
// doesn't stop within `stop_timeout_ms` (it sits in uninterruptible sleep); and whatever the call itself
// failed with.
UniqueFd take_remote_descriptor(pid_t pid, const RemoteCall& call, unsigned stop_timeout_ms = 2000);

}  // namespace colo
