// The client side of a session's sockets, which another thread may cut at any moment.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <list>
#include <mutex>
#include <string>

#include "connection.h"

struct addrinfo;

namespace colo {

// Once cut, everything that blocks on one of the sockets ends, and no new one can be opened. A socket is
// closed only with its owner, so that cut() never meets a number that has become another file's.
//
// A peer that lives and takes nothing doesn't hold a session: where the kernel has got rid of no byte for
// `stall_timeout_ms`, sending fails.
class LinkSockets {
 public:
  static constexpr unsigned kStallTimeoutMs = 30'000;
  explicit LinkSockets(unsigned stall_timeout_ms = kStallTimeoutMs) : stall_timeout_ms_(stall_timeout_ms) {}

  // Connects to host:port, trying the name's addresses in turn, each for at most `timeout_ms`, and keeps the
  // connection (non-blocking, TCP_NODELAY, CLOEXEC) where it is. With `credentials` (else nullptr) TLS begins
  // on it, for which the peer gets as much time again. Throws ERR_COLO_LINK with the address in its text.
  // Resolving a name can't be interrupted.
  Connection& connect(const std::string& host, std::uint16_t port, int timeout_ms,
                      const TlsCredentials* credentials);

  // Gives a connection away: it won't be cut any more.
  Connection release(Connection& connection);

  // From any thread, any number of times.
  void cut();

  // Sleeps until `deadline`. Throws ERR_COLO_LINK as soon as the link is cut.
  void sleep_until(std::chrono::steady_clock::time_point deadline);

 private:
  Connection* begin_connect(const addrinfo& address);

  const unsigned stall_timeout_ms_;
  std::mutex mutex_;
  std::condition_variable cut_changed_;
  std::list<Connection> connections_;  // those of failed attempts, too
  bool cut_ = false;
};

}  // namespace colo
