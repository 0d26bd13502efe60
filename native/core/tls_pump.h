// A TLS connection for somebody who can only speak to a plain socket, as Node.js does.
#pragma once

#include <chrono>
#include <functional>
#include <optional>
#include <thread>

#include "connection.h"
#include "unique_fd.h"

namespace colo {

// Carries bytes between the connection and one end of a local socket pair, on a thread of its own, until both
// directions have come to their end, the user has closed the other end, or the connection fails. What the
// user wrote before he closed still goes out, for at most kLingerMs.
class TlsPump {
 public:
  static constexpr int kLingerMs = 1000;

  // `ended` (may be empty) is called once, from the pump's thread. Throws ERR_COLO_SOCKET.
  TlsPump(Connection connection, std::function<void()> ended);
  // Ends the pump as if the user had closed his end.
  ~TlsPump();

  // The user's end, non-blocking, once; from then on it is his.
  UniqueFd take_user_end() { return std::move(user_end_); }

 private:
  using Clock = std::chrono::steady_clock;
  class Direction;

  void run();
  bool wait(const Direction& outgoing, const Direction& incoming, std::optional<Clock::time_point> deadline);

  Connection connection_;
  UniqueFd user_end_, our_end_, closing_;
  std::thread thread_;
};

}  // namespace colo
