// The client side of a session's sockets, which another thread may cut at any moment.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "unique_fd.h"

struct addrinfo;

namespace colo {

// Once cut, everything that blocks on one of the sockets ends, and no new one can be opened. A socket is
// closed only with its owner, so that cut() never meets a number that has become another file's.
class LinkSockets {
 public:
  // Connects to host:port, trying the name's addresses in turn, each for at most `timeout_ms`, and keeps the
  // socket (non-blocking, TCP_NODELAY, CLOEXEC). Throws ERR_COLO_LINK with the address in its text. Resolving
  // a name can't be interrupted.
  int connect(const std::string& host, std::uint16_t port, int timeout_ms);

  // From any thread, any number of times.
  void cut();

  // Sleeps until `deadline`. Throws ERR_COLO_LINK as soon as the link is cut.
  void sleep_until(std::chrono::steady_clock::time_point deadline);

 private:
  int begin_connect(const addrinfo& address);

  std::mutex mutex_;
  std::condition_variable cut_changed_;
  std::vector<UniqueFd> sockets_;  // those of failed attempts, too
  bool cut_ = false;
};

}  // namespace colo
