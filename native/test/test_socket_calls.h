// Socket calls that do what the kernel may do at any time: transfer less than asked, be interrupted, have no
// room.
#pragma once

#include <gtest/gtest.h>

#include <cerrno>
#include <random>
#include <vector>

#include "../core/socket_io.h"

namespace colo::testing {

// Does what the kernel may do at any time: transfers less than asked, is interrupted, has no room.
class FaultySocketCalls : public SocketCalls {
 public:
  explicit FaultySocketCalls(unsigned seed) : random_(seed) {}

  ssize_t sendmsg(int fd, const msghdr* message, int flags) override {
    EXPECT_TRUE(flags & MSG_NOSIGNAL);
    EXPECT_LE(message->msg_iovlen, 1024u);  // IOV_MAX
    if (fault()) return -1;
    // A part of one piece at most: every boundary is met.
    iovec piece = message->msg_iov[0];
    piece.iov_len = shortened(piece.iov_len);
    msghdr less = *message;
    less.msg_iov = &piece;
    less.msg_iovlen = 1;
    return SocketCalls::sendmsg(fd, &less, flags);
  }
  ssize_t recv(int fd, void* into, std::size_t length, int flags) override {
    return fault() ? -1 : SocketCalls::recv(fd, into, shortened(length), flags);
  }
  int poll(pollfd* fds, nfds_t count, int timeout_ms) override {
    ++polls;
    if (random_() % 4 == 0) {
      errno = EINTR;
      return -1;
    }
    return SocketCalls::poll(fds, count, timeout_ms);
  }

  unsigned polls = 0;

 private:
  bool fault() {
    const auto kind = random_() % 6;
    errno = kind == 0 ? EINTR : EAGAIN;
    return kind < 2;
  }
  std::size_t shortened(std::size_t length) {
    return length == 0 || random_() % 3 == 0 ? length : random_() % length + 1;
  }

  std::mt19937_64 random_;
};

// Takes everything that is sent, and sends nothing.
class RecordingSocketCalls : public SocketCalls {
 public:
  ssize_t sendmsg(int, const msghdr* message, int) override {
    ++calls;
    const std::size_t before = bytes.size();
    for (std::size_t i = 0; i < message->msg_iovlen; ++i) {
      const auto* from = static_cast<const std::byte*>(message->msg_iov[i].iov_base);
      bytes.insert(bytes.end(), from, from + message->msg_iov[i].iov_len);
    }
    return static_cast<ssize_t>(bytes.size() - before);
  }

  std::vector<std::byte> bytes;
  unsigned calls = 0;
};

}  // namespace colo::testing
