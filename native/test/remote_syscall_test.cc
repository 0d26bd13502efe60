#include "../core/remote_syscall.h"

#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <time.h>

#include <cstring>
#include <random>

#include "../core/error.h"
#include "../core/process_maps.h"
#include "child_process.h"

namespace colo {
namespace {

using testing::ChildProcess;
using testing::open_descriptors;
using testing::status_field;
using testing::wait_until;

// A call that returns a descriptor and shows that its arguments arrived: an eventfd that holds `value`.
RemoteCall make_eventfd(std::uint64_t value) { return {SYS_eventfd2, {value, EFD_CLOEXEC | EFD_NONBLOCK}}; }

void expect_injection_works(pid_t pid) {
  static std::uint64_t value = 1000;
  const UniqueFd fd = take_remote_descriptor(pid, make_eventfd(++value));
  std::uint64_t held = 0;
  ASSERT_EQ(::read(fd.get(), &held, sizeof held), static_cast<ssize_t>(sizeof held));
  EXPECT_EQ(held, value);
}

int injection_errno(pid_t pid, const RemoteCall& call = make_eventfd(1), unsigned stop_timeout_ms = 2000) {
  try {
    take_remote_descriptor(pid, call, stop_timeout_ms);
    return 0;
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_INJECTION");
    return error.sys_errno();
  }
}

// Waits for the end of its socket: a child that does nothing until it is told to end.
int wait_for_end(int socket) {
  if (::send(socket, "r", 1, 0) != 1) return 1;
  char byte;
  return ::recv(socket, &byte, 1, 0) == 0 ? 0 : 1;
}

// Work whose result shows whether any register was lost on the way: integers, SSE, the flags.
std::uint64_t compute(std::uint64_t rounds) {
  std::uint64_t x = 88172645463325252u, carries = 0;
  double sum = 0;
  for (std::uint64_t i = 0; i < rounds; ++i) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    carries += x + i < x ? 1 : 0;
    sum += static_cast<double>(x >> 40) / 3.0;
  }
  return x + carries + static_cast<std::uint64_t>(sum);
}
constexpr std::uint64_t kRounds = 200'000;

// A child that says that it is ready, computes until it is sent something, and answers how often the result
// was wrong.
int compute_until_told(int socket) {
  const std::uint64_t expected = compute(kRounds);
  if (::send(socket, "r", 1, 0) != 1) return 1;
  std::uint64_t wrong = 0;
  char end;
  while (::recv(socket, &end, 1, MSG_DONTWAIT) < 0) wrong += compute(kRounds) != expected ? 1 : 0;
  return ::send(socket, &wrong, sizeof wrong, 0) == sizeof wrong ? 0 : 1;
}

TEST(RemoteSyscall, LeavesTheProcessAsItWas) {
  ChildProcess child(wait_for_end);
  child.receive<char>();
  ASSERT_TRUE(wait_until([&] { return status_field(child.pid(), "State").starts_with("S"); }));
  const auto descriptors = open_descriptors(child.pid());
  const auto blocked = status_field(child.pid(), "SigBlk"), caught = status_field(child.pid(), "SigCgt");
  for (int i = 0; i < 20; ++i) expect_injection_works(child.pid());
  EXPECT_EQ(open_descriptors(child.pid()), descriptors);
  EXPECT_EQ(status_field(child.pid(), "SigBlk"), blocked);
  EXPECT_EQ(status_field(child.pid(), "SigCgt"), caught);
  EXPECT_EQ(status_field(child.pid(), "TracerPid"), "0");
}

TEST(RemoteSyscall, TheDescriptorIsCloseOnExec) {
  ChildProcess child(wait_for_end);
  child.receive<char>();
  const UniqueFd fd = take_remote_descriptor(child.pid(), make_eventfd(1));
  EXPECT_EQ(::fcntl(fd.get(), F_GETFD), FD_CLOEXEC);
}

TEST(RemoteSyscall, ReportsTheErrorOfTheCall) {
  ChildProcess child(wait_for_end);
  child.receive<char>();
  EXPECT_EQ(injection_errno(child.pid(), {SYS_eventfd2, {0, ~std::uint64_t{0}}}), EINVAL);
  EXPECT_EQ(injection_errno(child.pid(), {100000, {}}), ENOSYS);
  expect_injection_works(child.pid());
}

// Each of the kernel's ways to restart a system call: the child finds it neither failed nor cut short, nor
// its time-out begun anew for each stop.
struct Blocking {
  const char* name;
  std::function<bool()>
      call;  // in the child: blocks for 300 ms; true when it returned as if nothing had happened
};

class RemoteSyscallInterrupts : public ::testing::TestWithParam<Blocking> {};

TEST_P(RemoteSyscallInterrupts, AndTheSystemCallGoesOn) {
  ChildProcess child([](int socket) {
    for (char go; ::recv(socket, &go, 1, 0) == 1;) {
      timespec begin, end;
      ::clock_gettime(CLOCK_MONOTONIC, &begin);
      const bool intact = GetParam().call();
      ::clock_gettime(CLOCK_MONOTONIC, &end);
      const std::int64_t ms = (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1'000'000;
      const std::int64_t result = intact ? ms : -1;
      if (::send(socket, &result, sizeof result, 0) < 0) return 1;
    }
    return 0;
  });
  child.send('g');
  for (int i = 0; i < 30; ++i) expect_injection_works(child.pid());
  EXPECT_GE(child.receive<std::int64_t>(), 299) << "-1: the call failed; less than 300: it was cut short";
}

bool sleeps_in_poll() { return ::poll(nullptr, 0, 300) == 0; }  // ERESTART_RESTARTBLOCK

bool sleeps_in_ppoll_with_a_mask() {  // ERESTARTNOHAND, and a signal mask that the kernel must put back
  sigset_t mask, before{}, after{};   // the kernel fills in 64 bits of each
  ::sigprocmask(SIG_SETMASK, nullptr, &before);
  sigfillset(&mask);
  const timespec time{0, 300'000'000};
  const bool timed_out = ::ppoll(nullptr, 0, &time, &mask) == 0;
  ::sigprocmask(SIG_SETMASK, nullptr, &after);
  return timed_out && std::memcmp(&before, &after, sizeof before) == 0;
}

bool sleeps_in_nanosleep() {  // ERESTART_RESTARTBLOCK
  const timespec time{0, 300'000'000};
  return ::nanosleep(&time, nullptr) == 0;
}

bool sleeps_in_read() {  // ERESTARTSYS
  int ends[2];
  if (::pipe(ends) != 0) return false;
  const pid_t writer = ::fork();
  if (writer == 0) {
    sleeps_in_nanosleep();
    ::_exit(::write(ends[1], "x", 1) == 1 ? 0 : 1);
  }
  char byte;
  return ::read(ends[0], &byte, 1) == 1 && byte == 'x' && ::waitpid(writer, nullptr, 0) == writer;
}

INSTANTIATE_TEST_SUITE_P(All, RemoteSyscallInterrupts,
                         ::testing::Values(Blocking{"poll", sleeps_in_poll},
                                           Blocking{"ppoll", sleeps_in_ppoll_with_a_mask},
                                           Blocking{"nanosleep", sleeps_in_nanosleep},
                                           Blocking{"read", sleeps_in_read}),
                         [](const auto& param) { return param.param.name; });

TEST(RemoteSyscall, AThreadThatComputesLosesNothing) {
  ChildProcess child(compute_until_told);
  child.receive<char>();
  for (int i = 0; i < 100; ++i) expect_injection_works(child.pid());
  child.send('e');
  EXPECT_EQ(child.receive<std::uint64_t>(), 0u);
}

volatile std::uint64_t signals_seen;

__attribute__((no_sanitize("thread"))) void count_signal(int) { signals_seen = signals_seen + 1; }

// By the kernel's own structure: ThreadSanitizer's sigaction() puts a handler between that keeps only one
// signal of a kind.
bool install_counter(int signal) {
  struct {
    void (*handler)(int);
    unsigned long flags;
    void (*restorer)();
    std::uint64_t mask;
  } action;
  struct sigaction first {};
  first.sa_handler = count_signal;
  if (::sigaction(signal, &first, nullptr) != 0) return false;
  if (::syscall(SYS_rt_sigaction, signal, nullptr, &action, sizeof action.mask) != 0) return false;
  action.handler = count_signal;
  action.flags &= ~static_cast<unsigned long>(SA_SIGINFO);
  return ::syscall(SYS_rt_sigaction, signal, &action, nullptr, sizeof action.mask) == 0;
}

// Queued signals that arrive before, during and after the stops: none is lost, none comes twice, and what the
// thread computes is right.
TEST(RemoteSyscall, NoSignalIsLost) {
  ChildProcess child([](int socket) {
    if (!install_counter(SIGRTMIN) || ::send(socket, "r", 1, 0) != 1) return 1;
    const std::uint64_t expected = compute(kRounds);
    std::uint64_t wrong = 0;
    std::uint64_t sent = 0;
    while (::recv(socket, &sent, sizeof sent, MSG_DONTWAIT) < 0)
      wrong += compute(kRounds) != expected ? 1 : 0;
    while (signals_seen < sent) {
      ::usleep(1000);
    }
    const std::uint64_t result = wrong + (signals_seen - sent);
    return ::send(socket, &result, sizeof result, 0) == sizeof result ? 0 : 1;
  });
  child.receive<char>();
  std::uint64_t sent = 0;
  std::jthread sender([&](std::stop_token enough) {
    while (!enough.stop_requested())
      sent += ::sigqueue(child.pid(), SIGRTMIN, {}) == 0 ? 1 : 0;  // EAGAIN: the queue is full
  });
  for (int i = 0; i < 100; ++i) expect_injection_works(child.pid());
  sender.request_stop();
  sender.join();
  EXPECT_GT(sent, 100u);
  child.send(sent);
  EXPECT_EQ(child.receive<std::uint64_t>(), 0u);
}

TEST(RemoteSyscall, AStoppedProcessStaysStopped) {
  ChildProcess child(wait_for_end);
  child.receive<char>();
  ::kill(child.pid(), SIGSTOP);
  const auto stopped = [&] { return status_field(child.pid(), "State").starts_with("T (stopped)"); };
  ASSERT_TRUE(wait_until(stopped));
  const auto descriptors = open_descriptors(child.pid());
  for (int i = 0; i < 10; ++i) {
    expect_injection_works(child.pid());
    ASSERT_TRUE(wait_until(stopped));
  }
  EXPECT_EQ(open_descriptors(child.pid()), descriptors);
  ::kill(child.pid(), SIGCONT);
  EXPECT_TRUE(wait_until([&] { return status_field(child.pid(), "State").starts_with("S"); }));
}

TEST(RemoteSyscall, SurvivesStopsAndContinuationsAtAnyMoment) {
  ChildProcess child(compute_until_told);
  child.receive<char>();
  std::jthread stopper([&](std::stop_token enough) {
    while (!enough.stop_requested()) {
      ::kill(child.pid(), SIGSTOP);
      ::kill(child.pid(), SIGCONT);
    }
  });
  for (int i = 0; i < 40; ++i) expect_injection_works(child.pid());
  stopper.request_stop();
  stopper.join();
  child.send('e');
  EXPECT_EQ(child.receive<std::uint64_t>(), 0u);
}

// Answers userfaultfd with `action` (SECCOMP_RET_...), lets everything else pass.
int wait_behind_seccomp(int socket, std::uint32_t action) {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, action),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program{sizeof code / sizeof code[0], code};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 ||
      ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    return 1;
  return wait_for_end(socket);
}

TEST(RemoteSyscall, ARefusalBySeccompIsReportedAndDoesNoHarm) {
  for (const std::uint32_t action : {SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_TRAP}) {
    ChildProcess child([action](int socket) { return wait_behind_seccomp(socket, action); });
    child.receive<char>();
    const auto descriptors = open_descriptors(child.pid());
    const auto caught = status_field(child.pid(), "SigCgt");
    EXPECT_EQ(injection_errno(child.pid(), {SYS_userfaultfd, {O_CLOEXEC}}), EPERM);
    expect_injection_works(child.pid());
    EXPECT_EQ(open_descriptors(child.pid()), descriptors);
    EXPECT_EQ(status_field(child.pid(), "SigCgt"), caught);
  }
}

TEST(RemoteSyscall, GivesUpOnAThreadThatDoesNotStop) {
  ChildProcess child([](int socket) {
    if (::send(socket, "r", 1, 0) != 1) return 1;
    // Whoever clones with CLONE_VFORK sleeps uninterruptibly until the child has gone. (Not vfork(), which
    // ThreadSanitizer turns into fork().)
    const long blocker = ::syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
    if (blocker == 0) {
      char byte;
      ::_exit(::recv(socket, &byte, 1, 0) == 1 ? 0 : 1);
    }
    ::waitpid(static_cast<pid_t>(blocker), nullptr, 0);
    return wait_for_end(socket);
  });
  child.receive<char>();
  ASSERT_TRUE(wait_until([&] { return status_field(child.pid(), "State").starts_with("D"); }));
  EXPECT_EQ(injection_errno(child.pid(), make_eventfd(1), 50), ETIMEDOUT);
  EXPECT_EQ(status_field(child.pid(), "TracerPid"), "0");
  child.send('g');
  expect_injection_works(child.pid());
}

TEST(RemoteSyscall, ADebuggerIsInTheWay) {
  ChildProcess child(wait_for_end);
  child.receive<char>();
  ASSERT_EQ(::ptrace(PTRACE_SEIZE, child.pid(), 0, 0), 0);
  EXPECT_EQ(injection_errno(child.pid()), EPERM);
  ASSERT_EQ(::ptrace(PTRACE_INTERRUPT, child.pid(), 0, 0), 0);
  ASSERT_EQ(::waitpid(child.pid(), nullptr, __WALL), child.pid());
  ASSERT_EQ(::ptrace(PTRACE_DETACH, child.pid(), 0, 0), 0);
  expect_injection_works(child.pid());
}

TEST(RemoteSyscall, AProcessThatIsGone) {
  ChildProcess child(wait_for_end);
  child.receive<char>();
  const pid_t pid = child.pid();
  child.kill();
  EXPECT_EQ(injection_errno(pid), ESRCH);
}

TEST(RemoteSyscall, WorksWithoutAVdso) {
  ChildProcess child([](int socket) {
    for (const Mapping& mapping : read_process_maps(::getpid())) {
      if (mapping.path != "[vdso]") continue;
      if (::munmap(reinterpret_cast<void*>(mapping.start), mapping.end - mapping.start) != 0) return 1;
    }
    return wait_for_end(socket);
  });
  child.receive<char>();
  expect_injection_works(child.pid());
}

TEST(RemoteSyscall, WorksWhereSigchldIsIgnored) {
  ChildProcess child(wait_for_end);
  child.receive<char>();
  ChildProcess agent([&child](int) {
    ::signal(SIGCHLD, SIG_IGN);
    return injection_errno(child.pid());
  });
  EXPECT_EQ(agent.wait(), 0);
}

// INVARIANT 7: an agent killed in the middle of an injection leaves the process with its registers and
// without our descriptor.
TEST(RemoteSyscall, AnAgentKilledAtAnyMomentDoesNoHarm) {
  ChildProcess child(compute_until_told);
  child.receive<char>();
  const auto descriptors = open_descriptors(child.pid());
  std::mt19937 random(7);
  for (int i = 0; i < 150; ++i) {
    ChildProcess agent([&child](int socket) {
      if (::send(socket, "r", 1, 0) != 1) return 1;
      // EPERM: what the agent before left behind may still be at work.
      for (int error = 0; error == 0 || error == EPERM;) error = injection_errno(child.pid());
      return 1;
    });
    agent.receive<char>();
    const auto until = std::chrono::steady_clock::now() + std::chrono::microseconds(random() % 2000);
    while (std::chrono::steady_clock::now() < until) {
    }
    agent.kill();
    ASSERT_TRUE(wait_until([&] {
      return status_field(child.pid(), "TracerPid") == "0" && open_descriptors(child.pid()) == descriptors;
    })) << "round "
        << i;
  }
  child.send('e');
  EXPECT_EQ(child.receive<std::uint64_t>(), 0u);
}

}  // namespace
}  // namespace colo
