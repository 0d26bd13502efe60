#include "tls_pump.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <optional>
#include <utility>

#include "error.h"

namespace colo {
namespace {

constexpr std::size_t kBufferBytes = 65536;

struct End {
  SocketCalls& calls;
  int fd;
};

// Whether the call said "not now" rather than "never".
bool must_wait() { return errno == EAGAIN || errno == EINTR; }

}  // namespace

// One way: what was read and not yet written.
class TlsPump::Direction {
 public:
  Direction(End from, End to) : from_(from), to_(to) {}

  bool wants_to_read() const { return !ended_ && begin_ == end_; }
  bool wants_to_write() const { return begin_ < end_; }
  bool ended() const { return ended_ && begin_ == end_; }

  // Moves what can be moved without waiting. False: a side has failed. Throws as the calls do.
  bool move() {
    while (wants_to_read() || wants_to_write()) {
      if (wants_to_read() && !read()) return must_wait();
      if (wants_to_write() && !write()) return must_wait();
    }
    return true;
  }

 private:
  bool read() {
    const ssize_t got = from_.calls.recv(from_.fd, buffer_.data(), buffer_.size(), 0);
    if (got < 0) return false;
    ended_ = got == 0;
    begin_ = 0;
    end_ = static_cast<std::size_t>(got);
    return true;
  }
  bool write() {
    iovec piece = {buffer_.data() + begin_, end_ - begin_};
    msghdr message = {};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    const ssize_t sent = to_.calls.sendmsg(to_.fd, &message, MSG_NOSIGNAL);
    if (sent < 0) return false;
    begin_ += static_cast<std::size_t>(sent);
    return true;
  }

  const End from_, to_;
  bool ended_ = false;
  std::size_t begin_ = 0, end_ = 0;
  std::array<std::byte, kBufferBytes> buffer_;
};

TlsPump::TlsPump(Connection connection, std::function<void()> ended)
    : connection_(std::move(connection)), closing_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  COLO_ASSERT(connection_.tls);
  int ends[2];
  if (!closing_ || ::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0)
    throw_errno("ERR_COLO_SOCKET", "a socket for a TLS connection's bytes");
  user_end_.reset(ends[0]);
  our_end_.reset(ends[1]);
  thread_ = std::thread([this, ended = std::move(ended)] {
    try {
      run();
    } catch (const Error&) {
      // The user sees the connection end, whatever the reason is.
    }
    connection_.tls->end_sending();
    ::shutdown(connection_.fd.get(), SHUT_RDWR);
    ::shutdown(our_end_.get(), SHUT_RDWR);
    if (ended) ended();
  });
}

TlsPump::~TlsPump() {
  ::eventfd_write(closing_.get(), 1);
  thread_.join();
}

void TlsPump::run() {
  TlsSession& tls = *connection_.tls;
  const End peer = {tls, connection_.fd.get()}, user = {system_socket_calls(), our_end_.get()};
  const auto outgoing = std::make_unique<Direction>(user, peer);
  const auto incoming = std::make_unique<Direction>(peer, user);
  bool told_peer = false, told_user = false;
  std::optional<Clock::time_point> deadline;  // once the user is gone
  while (outgoing->move() && (deadline || incoming->move())) {
    if (outgoing->ended() && !std::exchange(told_peer, true)) {
      tls.end_sending();
      ::shutdown(peer.fd, SHUT_WR);
    }
    if (incoming->ended() && !std::exchange(told_user, true)) ::shutdown(user.fd, SHUT_WR);
    if (told_peer && (told_user || deadline)) return;
    if (deadline && (!outgoing->wants_to_write() || *deadline <= Clock::now())) return;
    if (wait(*outgoing, *incoming, deadline) && !deadline)
      deadline = Clock::now() + std::chrono::milliseconds(kLingerMs);
  }
}

// Until one of the directions can go on. True: the user is gone, or the pump is to end.
bool TlsPump::wait(const Direction& outgoing, const Direction& incoming,
                   std::optional<Clock::time_point> deadline) {
  std::array<pollfd, 3> waited = {
      pollfd{connection_.fd.get(), 0, 0}, {our_end_.get(), 0, 0}, {closing_.get(), POLLIN, 0}};
  int left_ms = -1;
  if (outgoing.wants_to_write()) waited[0].events |= POLLOUT;
  if (deadline) {
    waited[1].fd = waited[2].fd = -1;  // they would tell the same again and again
    left_ms =
        static_cast<int>(std::chrono::ceil<std::chrono::milliseconds>(*deadline - Clock::now()).count());
  } else {
    if (incoming.wants_to_read()) waited[0].events |= POLLIN;
    if (outgoing.wants_to_read()) waited[1].events |= POLLIN;
    if (incoming.wants_to_write()) waited[1].events |= POLLOUT;
  }
  if (::poll(waited.data(), waited.size(), std::max(left_ms, -1)) < 0) return errno != EINTR;
  // Where nothing is to be read any more, nothing but this would tell of a connection that was reset.
  const bool lost = (waited[0].revents & POLLERR) != 0 && !incoming.wants_to_read();
  return lost || (waited[1].revents & (POLLHUP | POLLERR)) != 0 || waited[2].revents != 0;
}

}  // namespace colo
