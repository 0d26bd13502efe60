// Socket calls that another thread can end, without a sign to the peer.
#pragma once

#include "socket_io.h"
#include "unique_fd.h"

namespace colo {

// For non-blocking sockets. After cut(), from any thread and any number of times, every call fails with
// ECANCELED, and so does a poll() in progress.
class CuttableCalls : public SocketCalls {
 public:
  CuttableCalls();  // throws ERR_COLO_SOCKET

  ssize_t sendmsg(int fd, const msghdr* message, int flags) override;
  ssize_t recv(int fd, void* into, std::size_t length, int flags) override;
  int poll(pollfd* fds, nfds_t count, int timeout_ms) override;  // one descriptor (asserted)

  void cut();

 private:
  bool is_cut() const;

  UniqueFd event_;  // readable once cut
};

}  // namespace colo
