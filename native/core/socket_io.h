// Whole transfers over a stream socket, whatever the kernel makes of each call.
#pragma once

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <cstddef>
#include <span>

namespace colo {

// The system calls behind the functions below, as a seam: tests put EINTR, EAGAIN and short transfers in at
// any place.
class SocketCalls {
 public:
  virtual ~SocketCalls() = default;
  virtual ssize_t sendmsg(int fd, const msghdr* message, int flags);
  virtual ssize_t recv(int fd, void* into, std::size_t length, int flags);
  virtual int poll(pollfd* fds, nfds_t count, int timeout_ms);
};
SocketCalls& system_socket_calls();

// Sends all the bytes of `pieces` (whose contents are used up), any number of them, on a blocking or
// non-blocking socket, and waits as long as the peer doesn't read: shutdown(2) from another thread ends that.
// Never raises SIGPIPE. Throws ERR_COLO_LINK; `connection` is what the error's text calls it, here and below.
void send_all(SocketCalls& calls, int fd, std::span<iovec> pieces,
              const char* connection = "a bulk connection");

// Fills all of `into`. Throws ERR_COLO_LINK, with errno 0 when the peer has closed the connection.
void receive_all(SocketCalls& calls, int fd, std::span<std::byte> into,
                 const char* connection = "a bulk connection");

// Waits for some bytes, at most as many as `into` takes, and returns their number: 0 when the peer has closed
// the connection. Throws ERR_COLO_LINK.
std::size_t receive_some(SocketCalls& calls, int fd, std::span<std::byte> into, const char* connection);

}  // namespace colo
