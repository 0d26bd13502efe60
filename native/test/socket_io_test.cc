#include "../core/socket_io.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "../core/error.h"
#include "../core/unique_fd.h"
#include "test_socket_calls.h"

namespace colo {
namespace {

using testing::FaultySocketCalls;

struct Pair {
  UniqueFd a, b;

  explicit Pair(bool blocking) {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (blocking ? 0 : SOCK_NONBLOCK), 0, fds) != 0)
      std::abort();
    a.reset(fds[0]);
    b.reset(fds[1]);
    const int small = 4096;  // the kernel doubles it; far less than what is sent
    if (::setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small) != 0) std::abort();
  }
};

std::vector<std::byte> random_bytes(std::size_t length, std::mt19937_64& random) {
  std::vector<std::byte> bytes(length);
  for (std::byte& byte : bytes) byte = std::byte(random());
  return bytes;
}

// Cuts `bytes` into `count` pieces at random places, some of them empty.
std::vector<iovec> cut(std::vector<std::byte>& bytes, std::size_t count, std::mt19937_64& random) {
  std::vector<std::size_t> cuts = {0, bytes.size()};
  for (std::size_t i = 1; i < count; ++i) cuts.push_back(random() % (bytes.size() + 1));
  std::sort(cuts.begin(), cuts.end());
  std::vector<iovec> pieces;
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i)
    pieces.push_back({bytes.data() + cuts[i], cuts[i + 1] - cuts[i]});
  return pieces;
}

const Error& error_of(const std::function<void()>& call) {
  static thread_local Error caught("", 0, "");
  try {
    call();
    caught = Error("", 0, "nothing was thrown");
  } catch (const Error& error) {
    caught = error;
  }
  return caught;
}

TEST(SocketIo, EveryByteArrivesInOrderWhateverTheKernelDoes) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (const bool blocking : {false, true}) {
    for (const std::size_t pieces_count : {1u, 7u, 3000u}) {
      Pair pair(blocking);
      std::vector<std::byte> sent = random_bytes(300'000, random), received(sent.size());
      std::vector<iovec> pieces = cut(sent, pieces_count, random);
      FaultySocketCalls sender_calls(seed), receiver_calls(seed + 1);
      std::thread sender([&] { send_all(sender_calls, pair.a.get(), pieces); });
      receive_all(receiver_calls, pair.b.get(), received);
      sender.join();
      ASSERT_EQ(sent, received);
      EXPECT_GT(sender_calls.polls + receiver_calls.polls, 0u);
    }
  }
}

TEST(SocketIo, SendingToAPeerThatHasGoneIsAnErrorAndNoSignal) {
  Pair pair(false);
  pair.b.reset();
  std::byte byte{1};
  iovec piece = {&byte, 1};
  const Error& error = error_of([&] { send_all(system_socket_calls(), pair.a.get(), {&piece, 1}); });
  EXPECT_STREQ(error.code(), "ERR_COLO_LINK");
  EXPECT_EQ(error.sys_errno(), EPIPE);
}

TEST(SocketIo, ReceivingFromAPeerThatHasClosedIsAnErrorWithoutErrno) {
  Pair pair(false);
  ASSERT_EQ(::send(pair.a.get(), "half", 4, 0), 4);
  pair.a.reset();
  std::vector<std::byte> wanted(8);
  const Error& error = error_of([&] { receive_all(system_socket_calls(), pair.b.get(), wanted); });
  EXPECT_STREQ(error.code(), "ERR_COLO_LINK");
  EXPECT_EQ(error.sys_errno(), 0);
}

TEST(SocketIo, ShutdownFromAnotherThreadEndsABlockedSendAndReceive) {
  for (const bool blocking : {false, true}) {
    Pair pair(blocking);
    std::vector<std::byte> bytes(1u << 20), wanted(10);
    iovec piece = {bytes.data(), bytes.size()};
    std::thread sender([&] {
      EXPECT_STREQ(error_of([&] {
                     send_all(system_socket_calls(), pair.a.get(), {&piece, 1});
                   }).code(),
                   "ERR_COLO_LINK");
    });
    std::thread receiver([&] {
      EXPECT_STREQ(error_of([&] { receive_all(system_socket_calls(), pair.a.get(), wanted); }).code(),
                   "ERR_COLO_LINK");
    });
    // The first byte tells that the sender is at work; nobody reads the rest.
    std::byte first;
    ASSERT_NO_THROW(receive_all(system_socket_calls(), pair.b.get(), {&first, 1}));
    ASSERT_EQ(::shutdown(pair.a.get(), SHUT_RDWR), 0);
    sender.join();
    receiver.join();
  }
}

TEST(SocketIo, NothingToSendIsNoCall) { ASSERT_NO_THROW(send_all(system_socket_calls(), -1, {})); }

}  // namespace
}  // namespace colo
