#include "socket_io.h"

#include <cerrno>
#include <climits>
#include <string>

#include "error.h"

namespace colo {
namespace {

// After a call that returned -1: waits where waiting helps, throws where it doesn't. EAGAIN and EWOULDBLOCK
// are one on Linux.
void recover(SocketCalls& calls, int fd, short events, const char* doing, const char* connection) {
  if (errno == EINTR) return;
  if (errno != EAGAIN) throw_errno("ERR_COLO_LINK", std::string(doing) + " " + connection);
  pollfd waited = {fd, events, 0};
  while (calls.poll(&waited, 1, -1) < 0) {
    if (errno != EINTR) throw_errno("ERR_COLO_LINK", std::string("waiting for ") + connection);
  }
}

// Takes `sent` bytes off the front.
std::span<iovec> drop_front(std::span<iovec> pieces, std::size_t sent) {
  while (!pieces.empty() && sent >= pieces.front().iov_len) {
    sent -= pieces.front().iov_len;
    pieces = pieces.subspan(1);
  }
  if (sent > 0) {
    COLO_ASSERT(!pieces.empty());
    pieces.front().iov_base = static_cast<std::byte*>(pieces.front().iov_base) + sent;
    pieces.front().iov_len -= sent;
  }
  return pieces;
}

}  // namespace

ssize_t SocketCalls::sendmsg(int fd, const msghdr* message, int flags) {
  return ::sendmsg(fd, message, flags);
}
ssize_t SocketCalls::recv(int fd, void* into, std::size_t length, int flags) {
  return ::recv(fd, into, length, flags);
}
int SocketCalls::poll(pollfd* fds, nfds_t count, int timeout_ms) { return ::poll(fds, count, timeout_ms); }

SocketCalls& system_socket_calls() {
  static SocketCalls calls;
  return calls;
}

void send_all(SocketCalls& calls, int fd, std::span<iovec> pieces, const char* connection) {
  pieces = drop_front(pieces, 0);
  while (!pieces.empty()) {
    msghdr message = {};
    message.msg_iov = pieces.data();
    message.msg_iovlen = pieces.size() < IOV_MAX ? pieces.size() : IOV_MAX;
    const ssize_t sent = calls.sendmsg(fd, &message, MSG_NOSIGNAL);
    if (sent < 0) {
      recover(calls, fd, POLLOUT, "sending on", connection);
    } else {
      pieces = drop_front(pieces, static_cast<std::size_t>(sent));
    }
  }
}

std::size_t receive_some(SocketCalls& calls, int fd, std::span<std::byte> into, const char* connection) {
  for (;;) {
    const ssize_t received = calls.recv(fd, into.data(), into.size(), 0);
    if (received >= 0) return static_cast<std::size_t>(received);
    recover(calls, fd, POLLIN, "receiving on", connection);
  }
}

void receive_all(SocketCalls& calls, int fd, std::span<std::byte> into, const char* connection) {
  while (!into.empty()) {
    const std::size_t received = receive_some(calls, fd, into, connection);
    if (received == 0) throw Error("ERR_COLO_LINK", 0, std::string("the peer closed ") + connection);
    into = into.subspan(received);
  }
}

}  // namespace colo
