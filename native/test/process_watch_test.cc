#include "../core/process_watch.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <future>
#include <thread>
#include <utility>

#include "../core/descriptors.h"
#include "../core/error.h"
#include "child_process.h"

namespace colo {
namespace {

using testing::ChildProcess;
using testing::status_field;
using testing::wait_until;

pid_t sleeping_child() {
  const pid_t pid = ::fork();
  if (pid == 0) {
    for (;;) ::pause();
  }
  return pid;
}

// A line that says too little made the watching thread end the agent.
TEST(ProcessWatch, ReadsThatAProcessIsExiting) {
  const auto stat = [](const char* flags, const char* pending) {
    std::string fields = ") S 1 1 1 0 -1 " + std::string(flags);
    for (int number = 10; number < 31; ++number) fields += " 0";
    return "7 (a) b" + fields + " " + pending + " 0 0";
  };
  EXPECT_FALSE(is_exiting_by_stat(stat("4194560", "0")));
  EXPECT_TRUE(is_exiting_by_stat(stat("4194564", "0")));
  EXPECT_TRUE(is_exiting_by_stat(stat("4194560", "256")));
  EXPECT_TRUE(is_exiting_by_stat(""));
  for (const char* text : {"7", "7 (qemu", "7 (qemu)", "7 (qemu) S", "7 (qemu) S x y z"})
    EXPECT_FALSE(is_exiting_by_stat(text)) << text;
}

TEST(ProcessWatch, TellsOfADeathBeforeAnybodyWaitedForIt) {
  const pid_t pid = sleeping_child();
  std::promise<void> dying, exited;
  ProcessWatch watch(pid, {[&] { dying.set_value(); }, [&] { exited.set_value(); }});
  ::kill(pid, SIGKILL);
  EXPECT_EQ(dying.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
  EXPECT_EQ(exited.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
  ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
  try {
    watch.signal(SIGTERM);
    FAIL() << "signalled a process that is gone";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_PROCESS");
    EXPECT_EQ(error.sys_errno(), ESRCH);
  }
}

#if !defined(__SANITIZE_THREAD__)  // which has a thread of its own in every process

bool kernel_has_thread_pidfds() {
  const int fd = static_cast<int>(::syscall(SYS_pidfd_open, ::getpid(), O_EXCL));
  if (fd >= 0) ::close(fd);
  return fd >= 0;
}

// A child whose first other thread ends when it is sent something, and which ends itself when `last_` is
// closed. Its main thread stays, or goes before.
class ThreadedChild {
 public:
  explicit ThreadedChild(bool main_thread_stays)
      : child_([this, main_thread_stays](int socket) {
          last_.second.reset();
          std::thread([socket] {
            char byte;
            if (::recv(socket, &byte, 1, 0) == 1) ::syscall(SYS_exit, 0);  // this thread alone
          }).detach();
          std::thread([this] {
            pollfd end = {.fd = last_.first.get(), .events = POLLIN, .revents = 0};
            ::_exit(::poll(&end, 1, -1) == 1 ? 0 : 1);
          }).detach();
          if (::send(socket, "r", 1, 0) != 1) return 1;
          if (!main_thread_stays) ::syscall(SYS_exit, 0);
          for (;;) ::pause();
        }) {
    child_.receive<char>();
  }
  pid_t pid() const { return child_.pid(); }
  void end_thread() { child_.send('e'); }
  void end() { last_.second.reset(); }

 private:
  std::pair<UniqueFd, UniqueFd> last_ = stream_socket_pair();
  ChildProcess child_;
};

struct Told {
  ProcessWatch::Events events() {
    return {[this] { dying.set_value(); }, [this] { ended.set_value(); }};
  }
  static bool comes(const std::future<void>& future, std::chrono::seconds within = std::chrono::seconds(60)) {
    return future.wait_for(within) == std::future_status::ready;
  }
  std::promise<void> dying, ended;
};

// What holds up the end of a killed QEMU is its memory. Here it is a thread that goes on, while the others
// have ended as those of a killed process do.
TEST(ProcessWatch, TellsOfADeathThatTakesLong) {
  ASSERT_TRUE(kernel_has_thread_pidfds()) << "Linux 6.9 or newer is needed to test this";
  ThreadedChild child(false);
  Told told;
  const auto dying = told.dying.get_future(), ended = told.ended.get_future();
  ProcessWatch watch(child.pid(), told.events());
  child.end_thread();
  ASSERT_TRUE(Told::comes(dying));
  EXPECT_FALSE(Told::comes(ended, std::chrono::seconds(0)));
  child.end();
  EXPECT_TRUE(Told::comes(ended));
}

TEST(ProcessWatch, ThreadThatEndsIsNoDeath) {
  ThreadedChild child(true);
  Told told;
  const auto dying = told.dying.get_future(), ended = told.ended.get_future();
  ProcessWatch watch(child.pid(), told.events());
  child.end_thread();
  ASSERT_TRUE(wait_until([&] { return status_field(child.pid(), "Threads") == "2"; }));
  EXPECT_FALSE(Told::comes(dying, std::chrono::seconds(0)));
  child.end();
  EXPECT_TRUE(Told::comes(dying) && Told::comes(ended));
}

#endif

TEST(ProcessWatch, SignalsTheProcess) {
  const pid_t pid = sleeping_child();
  std::promise<void> exited;
  ProcessWatch watch(pid, {[] {}, [&] { exited.set_value(); }});
  watch.signal(SIGKILL);
  EXPECT_EQ(exited.get_future().wait_for(std::chrono::seconds(10)), std::future_status::ready);
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_EQ(WTERMSIG(status), SIGKILL);
}

TEST(ProcessWatch, NothingIsCalledOnceItIsGone) {
  const pid_t pid = sleeping_child();
  bool called = false;
  {
    const ProcessWatch watch(pid, {[&] { called = true; }, [&] { called = true; }});
  }
  ::kill(pid, SIGKILL);
  ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
  EXPECT_FALSE(called);
}

TEST(ProcessWatch, RefusesAProcessThatIsGone) {
  const pid_t pid = sleeping_child();
  ::kill(pid, SIGKILL);
  ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
  try {
    const ProcessWatch watch(pid, {[] {}, [] {}});
    FAIL() << "watches nothing";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_PROCESS");
    EXPECT_EQ(error.sys_errno(), ESRCH);
  }
}

}  // namespace
}  // namespace colo
