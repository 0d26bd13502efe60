#include "../core/process_watch.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <future>

#include "../core/error.h"

namespace colo {
namespace {

pid_t sleeping_child() {
  const pid_t pid = ::fork();
  if (pid == 0) {
    for (;;) ::pause();
  }
  return pid;
}

TEST(ProcessWatch, TellsOfADeathBeforeAnybodyWaitedForIt) {
  const pid_t pid = sleeping_child();
  std::promise<void> exited;
  ProcessWatch watch(pid, [&] { exited.set_value(); });
  ::kill(pid, SIGKILL);
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

TEST(ProcessWatch, SignalsTheProcess) {
  const pid_t pid = sleeping_child();
  std::promise<void> exited;
  ProcessWatch watch(pid, [&] { exited.set_value(); });
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
    const ProcessWatch watch(pid, [&] { called = true; });
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
    const ProcessWatch watch(pid, [] {});
    FAIL() << "watches nothing";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_PROCESS");
    EXPECT_EQ(error.sys_errno(), ESRCH);
  }
}

}  // namespace
}  // namespace colo
