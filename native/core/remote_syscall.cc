#include "remote_syscall.h"

#include <cerrno>
#include <cstring>
#include <string>

#include "error.h"

#if defined(__x86_64__)

#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>

#include <algorithm>
#include <vector>

#include "memory_region.h"
#include "process_maps.h"

#if defined(__SANITIZE_THREAD__)
// ThreadSanitizer takes every clone() for a fork(), after which the other threads are gone: in shared memory
// it must not. This is the same function under a name that it leaves alone.
extern "C" int __clone(int (*function)(void*), void* stack, int flags, void* argument, ...) noexcept;
#define COLO_CLONE ::__clone
#else
#define COLO_CLONE ::clone
#endif

namespace colo {
namespace {

constexpr std::uint64_t kUserCodeSegment64 = 0x33;  // __USER_CS: the thread runs 64-bit code
constexpr std::size_t kSyscallLength = 2;           // 0f 05
constexpr std::size_t kHelperStackBytes = 256 * 1024;

// What the helper process is told and tells. All of it is plain memory shared by CLONE_VM: the helper must
// not throw, and must not touch what another thread of this process may hold.
struct Job {
  pid_t pid;
  int pidfd;
  std::uint64_t syscall_address;
  RemoteCall call;
  timespec deadline;  // CLOCK_MONOTONIC, for the first stop
  int taken_fd = -1;
  int error = 0;               // errno, with
  const char* step = "clone";  // what failed
};

timespec in_ms(unsigned ms) {
  timespec time;
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  time.tv_sec += ms / 1000;
  time.tv_nsec += static_cast<long>(ms % 1000) * 1'000'000;
  if (time.tv_nsec >= 1'000'000'000) {
    time.tv_nsec -= 1'000'000'000;
    ++time.tv_sec;
  }
  return time;
}

bool has_passed(const timespec& deadline) {
  const timespec now = in_ms(0);
  return now.tv_sec != deadline.tv_sec ? now.tv_sec > deadline.tv_sec : now.tv_nsec >= deadline.tv_nsec;
}

// Signals that the injected instruction itself could cause. They aren't blocked: the kernel would reset their
// handlers then (force_sig).
constexpr int kFaults[] = {SIGSEGV, SIGILL, SIGTRAP, SIGFPE, SIGSYS};

bool is_fault(int signal) {
  return std::find(std::begin(kFaults), std::end(kFaults), signal) != std::end(kFaults);
}

std::uint64_t all_but_faults() {
  std::uint64_t set = ~std::uint64_t{0};
  for (const int signal : kFaults) set &= ~(std::uint64_t{1} << (signal - 1));
  return set;
}

// The traced main thread, seen from the helper process. Every function returns false after it has noted the
// error in the job; only the first error counts.
class Tracee {
 public:
  explicit Tracee(Job& job) : job_(job) {}

  // Attaches, stops the thread and keeps what release() puts back.
  bool stop() {
    // Without PTRACE_O_EXITKILL: if this process dies, the kernel detaches, and QEMU goes on.
    if (!request(PTRACE_SEIZE, 0, PTRACE_O_TRACESYSGOOD, "PTRACE_SEIZE") || !run_to_trap(true)) return false;
    if (!request(PTRACE_GETREGS, 0, address(saved_), "PTRACE_GETREGS")) return detach_and_fail();
    if (saved_.cs != kUserCodeSegment64) {
      note("the process runs 32-bit code", EINVAL);
      return detach_and_fail();
    }
    const std::uint64_t blocked = all_but_faults();
    if (!request(PTRACE_GETSIGMASK, sizeof saved_mask_, address(saved_mask_), "PTRACE_GETSIGMASK") ||
        !request(PTRACE_SETSIGMASK, sizeof blocked, address(blocked), "PTRACE_SETSIGMASK")) {
      return detach_and_fail();
    }
    return true;
  }

  // Runs one system call; `result` is what the kernel returned, -errno for an error.
  bool call(const RemoteCall& call, long& result) {
    user_regs_struct registers = saved_;
    registers.rip = job_.syscall_address;
    registers.rax = static_cast<std::uint64_t>(call.number);
    registers.orig_rax = ~std::uint64_t{0};  // not in a system call: nothing to restart on the way
    registers.rdi = call.arguments[0];
    registers.rsi = call.arguments[1];
    registers.rdx = call.arguments[2];
    registers.r10 = call.arguments[3];
    registers.r8 = call.arguments[4];
    registers.r9 = call.arguments[5];
    if (!request(PTRACE_SETREGS, 0, address(registers), "PTRACE_SETREGS")) return false;
    if (!run_to_syscall_stop() || !run_to_syscall_stop()) return false;  // entry, exit
    if (!request(PTRACE_GETREGS, 0, address(registers), "PTRACE_GETREGS")) return false;
    result = static_cast<long>(registers.rax);
    return (registers.rip == job_.syscall_address + kSyscallLength &&
            registers.orig_rax == static_cast<std::uint64_t>(call.number)) ||
           note("the injected call didn't run", EPERM);
  }

  // The thread goes on where stop() found it. It is let out of a trap, not out of the system call's stop: the
  // kernel restarts the system call that it was in (saved_ says so by orig_rax and an internal error in rax)
  // only on the way out of its signal code.
  bool release() {
    return run_to_trap(false) && request(PTRACE_SETREGS, 0, address(saved_), "PTRACE_SETREGS") &&
           request(PTRACE_SETSIGMASK, sizeof saved_mask_, address(saved_mask_), "PTRACE_SETSIGMASK") &&
           request(PTRACE_DETACH, 0, 0, "PTRACE_DETACH");
  }

  bool note(const char* step, int error) {
    if (job_.error == 0) {
      job_.step = step;
      job_.error = error;
    }
    return false;
  }

 private:
  template <typename T>
  static std::uint64_t address(T& object) {
    return reinterpret_cast<std::uint64_t>(&object);
  }

  bool request(__ptrace_request what, std::uint64_t at, std::uint64_t data, const char* step) {
    return ::ptrace(what, job_.pid, at, data) == 0 || note(step, errno);
  }

  bool detach_and_fail() {
    request(PTRACE_DETACH, 0, 0, "PTRACE_DETACH");
    return false;
  }

  // Waits for the next stop of the thread, until the deadline if `bounded`. Once the thread runs an injected
  // call there is no giving up, and no need to: neither call can block.
  bool wait_stop(bool bounded) {
    for (;;) {
      const pid_t stopped = ::waitpid(job_.pid, &status_, __WALL | WNOHANG);
      if (stopped == job_.pid) return WIFSTOPPED(status_) || note("the process ended", ESRCH);
      if (stopped < 0) return note("waitpid", errno);
      if (bounded && has_passed(job_.deadline)) return note("its main thread doesn't stop", ETIMEDOUT);
      // SIGCHLD, blocked like all signals here, tells of a stop at once; the limit is for an agent that was
      // started with SIGCHLD ignored.
      sigset_t child;
      sigemptyset(&child);
      sigaddset(&child, SIGCHLD);
      const timespec limit{0, 1'000'000};
      ::sigtimedwait(&child, nullptr, &limit);
    }
  }

  bool at_event_stop() const { return status_ >> 16 == PTRACE_EVENT_STOP; }

  // The thread is about to get a signal that our instruction caused; never one of its own, which would have
  // come before the first trap.
  bool is_refusal() const { return holds_thread_ && !at_event_stop() && is_fault(WSTOPSIG(status_)); }

  // From the thread running free (`first`), or from a stop: lets it run into the trap that PTRACE_INTERRUPT
  // asks for (a group stop serves as well). A signal that is on its way to the thread comes first; its stop
  // uses our request up, so that it has to be made again.
  bool run_to_trap(bool first) {
    if (!request(PTRACE_INTERRUPT, 0, 0, "PTRACE_INTERRUPT")) return false;
    if (!first && !request(PTRACE_CONT, 0, 0, "PTRACE_CONT")) return false;
    while (wait_stop(first)) {
      if (at_event_stop()) {
        holds_thread_ = true;
        return true;
      }
      const int signal = is_refusal() ? 0 : WSTOPSIG(status_);
      if (!request(PTRACE_INTERRUPT, 0, 0, "PTRACE_INTERRUPT") ||
          !request(PTRACE_CONT, 0, static_cast<std::uint64_t>(signal), "PTRACE_CONT")) {
        return false;
      }
    }
    return false;
  }

  // From a stop to the next entry into or exit from a system call. SIGSTOP, which can't be blocked, may come
  // between; it is delivered, and the group stop that it begins holds again from PTRACE_DETACH on.
  bool run_to_syscall_stop() {
    int signal = 0;
    while (request(PTRACE_SYSCALL, 0, static_cast<std::uint64_t>(signal), "PTRACE_SYSCALL") &&
           wait_stop(false)) {
      if (WSTOPSIG(status_) == (SIGTRAP | 0x80)) return true;
      if (is_refusal()) return note("the injected call was answered with a signal (seccomp?)", EPERM);
      signal = at_event_stop() ? 0 : WSTOPSIG(status_);
    }
    return false;
  }

  Job& job_;
  user_regs_struct saved_;
  std::uint64_t saved_mask_ = 0;
  int status_ = 0;
  bool holds_thread_ = false;  // it has stopped for us: from here on it runs nothing but our instruction
};

void take_descriptor(Tracee& tracee, Job& job) {
  long theirs = -1;
  if (!tracee.call(job.call, theirs)) return;
  if (theirs < 0) {
    tracee.note("the injected call", static_cast<int>(-theirs));
    return;
  }
  job.taken_fd = static_cast<int>(::syscall(SYS_pidfd_getfd, job.pidfd, theirs, 0));
  const int take_error = errno;
  long closed = -1;
  const RemoteCall close_call{SYS_close, {static_cast<std::uint64_t>(theirs)}};
  // A seccomp filter that traps has made up the result above; its signal comes now, before anything is
  // closed.
  if (!tracee.call(close_call, closed)) return;
  if (closed != 0) tracee.note("the injected close", static_cast<int>(-closed));
  if (job.taken_fd < 0) tracee.note("pidfd_getfd", take_error);
}

// The helper process. It returns (and doesn't exit()), so that every frame on its stack is left in order, for
// the sanitizers' sake.
int run_helper(void* argument) {
  Job& job = *static_cast<Job*>(argument);
  job.step = nullptr;
  Tracee tracee(job);
  if (!tracee.stop()) return 0;
  take_descriptor(tracee, job);
  tracee.release();
  return 0;
}

// Where in the process's memory there is a `syscall` instruction: the vdso has one, and libc if the process
// has no vdso. Bytes that only look like it (the end of another instruction, a constant) serve as well, for
// the bytes after it are never run.
std::uint64_t find_syscall_instruction(pid_t pid) {
  std::vector<Mapping> mappings = read_process_maps(pid);
  std::erase_if(mappings, [](const Mapping& mapping) { return !mapping.executable || !mapping.readable; });
  std::stable_partition(mappings.begin(), mappings.end(),
                        [](const Mapping& mapping) { return mapping.path == "[vdso]"; });
  std::vector<char> code(1 << 20);
  for (const Mapping& mapping : mappings) {
    for (std::uint64_t at = mapping.start; at < mapping.end; at += code.size()) {
      const iovec ours{code.data(), code.size()};
      const iovec theirs{reinterpret_cast<void*>(at), std::min<std::uint64_t>(code.size(), mapping.end - at)};
      const ssize_t length = ::process_vm_readv(pid, &ours, 1, &theirs, 1, 0);
      if (length < 0) throw_errno("ERR_COLO_INJECTION", "reading the code of process " + std::to_string(pid));
      const void* const found =
          ::memmem(code.data(), static_cast<std::size_t>(length), "\x0f\x05", kSyscallLength);
      if (found != nullptr)
        return at + static_cast<std::uint64_t>(static_cast<const char*>(found) - code.data());
    }
  }
  throw Error("ERR_COLO_INJECTION", EINVAL, "process " + std::to_string(pid) + " has no syscall instruction");
}

// Runs the helper to its end. All signals are blocked around it, as posix_spawn(3) does: a handler must not
// run in a process that only borrows this one's memory.
void run_in_helper(Job& job) {
  const MemoryRegion stack(kHelperStackBytes, PROT_READ | PROT_WRITE);
  sigset_t all, before;
  sigfillset(&all);
  COLO_ASSERT(::pthread_sigmask(SIG_SETMASK, &all, &before) == 0);
  // No exit signal (the flags' low byte): nobody but the waitpid() below, with __WALL, hears of this child.
  const pid_t helper =
      COLO_CLONE(run_helper, stack.data() + stack.size(), CLONE_VM | CLONE_FILES | CLONE_VFORK, &job);
  if (helper < 0) {
    job.error = errno;
  } else {
    while (::waitpid(helper, nullptr, __WALL) < 0 && errno == EINTR) {
    }
  }
  COLO_ASSERT(::pthread_sigmask(SIG_SETMASK, &before, nullptr) == 0);
}

}  // namespace

UniqueFd take_remote_descriptor(pid_t pid, const RemoteCall& call, unsigned stop_timeout_ms) {
  const UniqueFd pidfd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!pidfd) throw_errno("ERR_COLO_INJECTION", "process " + std::to_string(pid));
  Job job{pid, pidfd.get(), find_syscall_instruction(pid), call, in_ms(stop_timeout_ms)};
  run_in_helper(job);
  UniqueFd taken(job.taken_fd);
  if (job.error != 0) {
    throw Error("ERR_COLO_INJECTION", job.error,
                "process " + std::to_string(pid) + ": " + job.step + ": " + std::strerror(job.error));
  }
  return taken;
}

}  // namespace colo

#else

namespace colo {

UniqueFd take_remote_descriptor(pid_t, const RemoteCall&, unsigned) {
  throw Error("ERR_COLO_INJECTION", ENOSYS, "system calls can be injected on x86-64 only");
}

}  // namespace colo

#endif
