#include "cuttable_calls.h"

#include <sys/eventfd.h>

#include <cerrno>

#include "error.h"

namespace colo {

CuttableCalls::CuttableCalls() : event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!event_) throw_errno("ERR_COLO_SOCKET", "eventfd");
}

bool CuttableCalls::is_cut() const {
  pollfd event = {event_.get(), POLLIN, 0};
  if (::poll(&event, 1, 0) <= 0) return false;
  errno = ECANCELED;
  return true;
}

ssize_t CuttableCalls::sendmsg(int fd, const msghdr* message, int flags) {
  return is_cut() ? -1 : SocketCalls::sendmsg(fd, message, flags);
}

ssize_t CuttableCalls::recv(int fd, void* into, std::size_t length, int flags) {
  return is_cut() ? -1 : SocketCalls::recv(fd, into, length, flags);
}

int CuttableCalls::poll(pollfd* fds, nfds_t count, int timeout_ms) {
  COLO_ASSERT(count == 1);
  pollfd both[] = {fds[0], {event_.get(), POLLIN, 0}};
  const int ready = SocketCalls::poll(both, 2, timeout_ms);
  if (ready > 0 && both[1].revents != 0) {
    errno = ECANCELED;
    return -1;
  }
  fds[0].revents = both[0].revents;
  return ready;
}

void CuttableCalls::cut() { ::eventfd_write(event_.get(), 1); }

}  // namespace colo
