#include "../core/eventfd_kick.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

#include "../core/error.h"
#include "../core/unique_fd.h"
#include "child_process.h"

namespace colo {
namespace {

// A process that has two eventfds and a file says what it found in the eventfds once it is told to look.
TEST(EventfdKick, SignalsEveryEventfdAndNothingElse) {
  testing::ChildProcess child([](int socket) {
    const int events[] = {::eventfd(0, EFD_NONBLOCK), ::eventfd(5, EFD_NONBLOCK)};
    const int file = ::open("/dev/zero", O_RDWR);
    if (file < 0 || ::send(socket, "r", 1, 0) != 1) return 1;
    char go;
    if (::recv(socket, &go, 1, 0) != 1) return 2;
    for (const int event : events) {
      std::uint64_t count = 0;
      if (::read(event, &count, sizeof count) != sizeof count) return 3;
      if (::send(socket, &count, sizeof count, 0) != sizeof count) return 4;
    }
    return 0;
  });
  child.receive<char>();
  EXPECT_GE(kick_eventfds(child.pid()), 2u);
  child.send('g');
  EXPECT_EQ(child.receive<std::uint64_t>(), 1u);
  EXPECT_EQ(child.receive<std::uint64_t>(), 6u);
}

TEST(EventfdKick, ReportsThatTheProcessIsGone) { EXPECT_THROW(kick_eventfds(0x3ffffff), Error); }

}  // namespace
}  // namespace colo
