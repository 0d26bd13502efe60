#include "heartbeat_judge.h"

#include <algorithm>
#include <utility>

namespace colo {
namespace {

std::string in_ms(std::chrono::steady_clock::duration time) {
  return std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(time).count()) + " ms";
}

}  // namespace

HeartbeatJudge::HeartbeatJudge(const HeartbeatLimits& limits, Clock::time_point now)
    : limits_(limits), observed_(now), heard_(now), moved_(now) {}

void HeartbeatJudge::observe(Clock::time_point now) {
  const Clock::duration stood = now - observed_ - 2 * limits_.interval;
  observed_ = now;
  if (stood <= Clock::duration::zero()) return;
  heard_ += stood;
  moved_ += stood;
  if (closed_) *closed_ += stood;
}

void HeartbeatJudge::heard(Clock::time_point now, std::uint64_t progress) {
  if (!heard_any_ || progress != progress_) moved_ = now;
  heard_any_ = true;
  heard_ = now;
  progress_ = progress;
}

void HeartbeatJudge::closed(Clock::time_point now, std::string reason) {
  closed_ = now;
  closed_reason_ = std::move(reason);
}

HeartbeatJudge::Clock::duration HeartbeatJudge::silence_max() const {
  return heard_any_ ? limits_.timeout : std::max(limits_.timeout, limits_.first_timeout);
}

HeartbeatJudge::Clock::time_point HeartbeatJudge::due() const {
  if (closed_) return *closed_ + limits_.closed_grace;
  return std::min(heard_ + silence_max(), moved_ + limits_.stall_timeout);
}

std::optional<HeartbeatVerdict> HeartbeatJudge::verdict(Clock::time_point now) const {
  using Kind = HeartbeatVerdict::Kind;
  if (now < due()) return {};
  if (closed_) return {{Kind::closed, "has ended its heartbeats: " + closed_reason_, heard_}};
  if (now >= heard_ + silence_max())
    return {{Kind::silent, "has said nothing for " + in_ms(now - heard_), heard_}};
  return {{Kind::stalled,
           "lives, but its agent does nothing: its event loop has stood still for " + in_ms(now - moved_),
           heard_}};
}

}  // namespace colo
