// What the heartbeats' thread is given on a busy host, and what it does without.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <fstream>
#include <future>
#include <string>
#include <utility>

#include "../core/heartbeat.h"
#include "child_process.h"

namespace colo {
namespace {

using std::chrono::milliseconds;
using testing::ChildProcess;
using testing::wait_until;

// Under the sanitizers mlock() does nothing, so that what it does is for the plain build to see.
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define COLO_MLOCK_WORKS
#endif

// A heartbeat that tells no verdict, and what its thread was given.
class Told {
 public:
  explicit Told(UniqueFd socket)
      : heartbeat_(
            {milliseconds(10), kLong, kLong, kLong, kLong}, 7, Connection(std::move(socket)),
            [](const HeartbeatVerdict&) {},
            [this](const HeartbeatPrivileges& got) { promise_.set_value(got); }) {}

  HeartbeatPrivileges privileges() { return promise_.get_future().get(); }
  HeartbeatStats stats() const { return heartbeat_.stats(); }

 private:
  static constexpr auto kLong = std::chrono::minutes(2);

  std::promise<HeartbeatPrivileges> promise_;
  Heartbeat heartbeat_;
};

std::pair<UniqueFd, UniqueFd> ends() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) std::abort();
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

#ifdef COLO_MLOCK_WORKS
std::size_t locked_kib() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with("VmLck:")) return std::stoul(line.substr(6));
  return 0;
}

TEST(HeartbeatPrivileges, ItsMemoryIsLockedAsLongAsItLives) {
  const std::size_t before = locked_kib();
  {
    auto [ours, peers] = ends();
    Told told(std::move(ours));
    ASSERT_EQ(told.privileges().locked_memory_errno, 0) << "the tests want root, or a larger `ulimit -l`";
    // The samples alone are two times 64 KiB, and the stack is as much again.
    EXPECT_GE(locked_kib(), before + 192);
  }
  EXPECT_EQ(locked_kib(), before);
}
#endif

// As nobody, with limits of nothing.
bool give_privileges_up() {
  const rlimit none = {0, 0};
  return ::setrlimit(RLIMIT_MEMLOCK, &none) == 0 && ::setrlimit(RLIMIT_RTPRIO, &none) == 0 &&
         ::setresuid(65534, 65534, 65534) == 0;
}

TEST(HeartbeatPrivileges, WithoutAnyItSaysSoAndBeatsAllTheSame) {
  ChildProcess child([](int socket) {
    if (!give_privileges_up()) return 1;
    auto [ours, peers] = ends();
    Told one(std::move(ours)), other(std::move(peers));
    const HeartbeatPrivileges got = one.privileges();
    const bool beats = wait_until([&] { return one.stats().received > 5 && other.stats().received > 5; });
    if (!beats || one.stats().real_time) return 1;
    return ::send(socket, &got, sizeof got, 0) == sizeof got ? 0 : 1;
  });
  const auto got = child.receive<HeartbeatPrivileges>();
  EXPECT_EQ(got.real_time_errno, EPERM);
#ifdef COLO_MLOCK_WORKS
  EXPECT_EQ(got.locked_memory_errno, EPERM);
#endif
  EXPECT_EQ(child.wait(), 0);
}

}  // namespace
}  // namespace colo
