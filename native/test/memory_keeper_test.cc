#include "../core/memory_keeper.h"

#include <gtest/gtest.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <fstream>

#include "child_process.h"

namespace colo {
namespace {

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)  // which has a thread of its own in every process

using testing::ChildProcess;
using testing::open_descriptors;
using testing::status_field;
using testing::wait_until;

pid_t only_child_of(pid_t parent) {
  const std::string task = "/proc/" + std::to_string(parent) + "/task/" + std::to_string(parent);
  pid_t child = 0, another = 0;
  std::ifstream(task + "/children") >> child >> another;
  EXPECT_EQ(another, 0);
  return child;
}

TEST(MemoryKeeper, HoldsTheMemoryAndNoDescriptorsUntilItsProcessHasEnded) {
  ChildProcess process([](int socket) {
    const bool started = start_memory_keeper() && start_memory_keeper();
    if (::write(socket, &started, 1) != 1) return 1;
    for (;;) ::pause();
  });
  ASSERT_TRUE(process.receive<bool>());
  const pid_t keeper = only_child_of(process.pid());
  ASSERT_GT(keeper, 0);
  EXPECT_EQ(::syscall(SYS_kcmp, process.pid(), keeper, KCMP_VM, 0, 0), 0);
  // One of its own, by which it sees the process end.
  EXPECT_TRUE(wait_until([&] { return open_descriptors(keeper).size() == 1; }));

  ::kill(keeper, SIGTERM);  // it means the process, not its keeper
  ::kill(keeper, SIGSTOP);
  EXPECT_TRUE(wait_until([&] { return status_field(keeper, "State")[0] == 'T'; }));
  ::kill(process.pid(), SIGKILL);
  std::byte end;
  EXPECT_EQ(::read(process.socket(), &end, 1), 0);
  EXPECT_EQ(status_field(keeper, "State")[0], 'T');
  EXPECT_FALSE(status_field(keeper, "VmRSS").empty())
      << "the memory was given back before the socket was closed";

  ::kill(keeper, SIGCONT);
  // Gone, or waiting for whoever collects orphans.
  EXPECT_TRUE(wait_until([&] { return ::kill(keeper, 0) != 0 || status_field(keeper, "State")[0] == 'Z'; }));
}

#endif

}  // namespace
}  // namespace colo
