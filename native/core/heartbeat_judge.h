// When a peer counts as dead: the rule alone, without a socket, a thread or a clock of its own.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace colo {

struct HeartbeatLimits {
  using Milliseconds = std::chrono::milliseconds;

  Milliseconds interval;  // ours and the peer's
  Milliseconds timeout;   // a peer that says nothing for so long is dead
  // The same before its first heartbeat, which its event loop must answer our connection for.
  Milliseconds first_timeout;
  // A peer whose heartbeats come but whose event loop stands for so long is as good as dead.
  Milliseconds stall_timeout;
  // An ended connection isn't told before this has passed: whether the peer left in order stands on the
  // control connection, which ends at the same moment and may be read later.
  Milliseconds closed_grace;
};

struct HeartbeatVerdict {
  enum class Kind { silent, closed, stalled, malformed };

  Kind kind;
  std::string reason;                           // a sentence's end after "the secondary" or "the primary"
  std::chrono::steady_clock::time_point heard;  // when the peer was last known to live
};

// Only the time counts in which we ourselves could have heard something. A process that stood still (SIGSTOP,
// a paused or starved host) wakes up to a silence of its own making: what is beyond two intervals between two
// calls of observe() is taken off.
class HeartbeatJudge {
 public:
  using Clock = std::chrono::steady_clock;

  HeartbeatJudge(const HeartbeatLimits& limits, Clock::time_point now);

  // First after every wake-up, at least once an interval, before what came meanwhile is read.
  void observe(Clock::time_point now);
  void heard(Clock::time_point now, std::uint64_t progress);
  void closed(Clock::time_point now, std::string reason);

  std::optional<HeartbeatVerdict> verdict(Clock::time_point now) const;
  // When verdict() may say something at the earliest.
  Clock::time_point due() const;

 private:
  Clock::duration silence_max() const;

  const HeartbeatLimits limits_;
  Clock::time_point observed_;
  Clock::time_point heard_;  // shifted by our own stand-stills, like all below
  Clock::time_point moved_;  // the last time that `progress_` grew
  std::uint64_t progress_ = 0;
  bool heard_any_ = false;
  std::optional<Clock::time_point> closed_;
  std::string closed_reason_;
};

}  // namespace colo
