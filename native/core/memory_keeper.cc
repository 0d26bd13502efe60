#include "memory_keeper.h"

#include <csignal>

#include "error.h"

#if defined(__x86_64__)
#include <linux/prctl.h>
#include <poll.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstddef>
#endif

namespace colo {

#if defined(__x86_64__)
namespace {

// The keeper has the caller's thread-local storage, too, so it must not call anything that sets errno.
[[gnu::no_sanitize("address", "thread", "undefined")]] long raw_syscall(long number, long first = 0,
                                                                        long second = 0, long third = 0,
                                                                        long fourth = 0, long fifth = 0) {
  register long r10 asm("r10") = fourth;
  register long r8 asm("r8") = fifth;
  long result;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(first), "S"(second), "d"(third), "r"(r10), "r"(r8)
               : "rcx", "r11", "memory");
  return result;
}

[[gnu::no_sanitize("address", "thread", "undefined")]] int keep(void* parent) {
  const long pid = reinterpret_cast<long>(parent);
  raw_syscall(SYS_prctl, PR_SET_NAME, reinterpret_cast<long>("colo-memory"));
  // Its copies of the descriptors would keep the connections open. A kernel without this call (before 5.9)
  // has no use for the keeper.
  const bool closed = raw_syscall(SYS_close_range, 0, ~0u) == 0;
  // Readable when the last thread of the process has ended, and so has closed what it had open
  // (pidfd_open(2)).
  const long process = raw_syscall(SYS_pidfd_open, pid);
  if (closed && process >= 0 && raw_syscall(SYS_getppid) == pid) {
    pollfd ended = {static_cast<int>(process), POLLIN, 0};
    raw_syscall(SYS_ppoll, reinterpret_cast<long>(&ended), 1);  // every signal is blocked but SIGKILL
  }
  raw_syscall(SYS_exit_group);
  return 0;
}

}  // namespace

bool start_memory_keeper() {
  alignas(16) static std::array<std::byte, 16 << 10> stack;
  static std::atomic<bool> started = false;
  if (started.exchange(true)) return true;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int keeper =
      ::clone(keep, stack.data() + stack.size(), CLONE_VM, reinterpret_cast<void*>(::getpid()));
  const int failure = errno;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (keeper >= 0) return true;
  started = false;
  throw Error("ERR_COLO_RESOURCES", failure, "starting the keeper of this process's memory");
}
#else
bool start_memory_keeper() { return false; }
#endif

}  // namespace colo
