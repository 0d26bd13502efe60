// The time that steps take, on the clock that a trace shows.
#pragma once

#include <chrono>
#include <cstdint>
#include <utility>

namespace colo {

// Whole microseconds of CLOCK_MONOTONIC, which is what the steady clock is on Linux, and what Node's hrtime
// tells: times of all processes of a machine can be laid over each other.
inline std::uint64_t monotonic_us() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(now).count());
}

// Steps that follow each other without a gap.
class Laps {
 public:
  std::uint64_t began_us() const { return began_us_; }

  // Microseconds since the last call or the construction.
  std::uint64_t lap_us() {
    const std::uint64_t now = monotonic_us();
    return now - std::exchange(last_us_, now);
  }

 private:
  const std::uint64_t began_us_ = monotonic_us();
  std::uint64_t last_us_ = began_us_;
};

}  // namespace colo
