// What heartbeats took, for status: written by a thread that must not wait, read by any.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace colo {

struct HeartbeatQuantiles {
  std::uint64_t min = 0, p50 = 0, p99 = 0, max = 0;  // all 0 while there is nothing to tell
};

// Without a lock: a reader that had one and lost its processor would hold up a thread that runs before all
// others.
class HeartbeatSamples {
 public:
  static constexpr std::size_t kKept = 8192;

  // From one thread only.
  void add(std::uint64_t value) {
    const std::uint64_t count = count_.load(std::memory_order_relaxed);
    // First the extremes: whoever sees the value below sees them, too.
    if (count == 0 || value < min_.load(std::memory_order_relaxed))
      min_.store(value, std::memory_order_relaxed);
    if (value > max_.load(std::memory_order_relaxed)) max_.store(value, std::memory_order_relaxed);
    kept_[count % kKept].store(value, std::memory_order_release);
    count_.store(count + 1, std::memory_order_release);
  }

  // Quantiles over the last kKept, minimum and maximum over all. From any thread; what is added meanwhile may
  // or may not be among them.
  HeartbeatQuantiles quantiles() const {
    const auto count =
        static_cast<std::size_t>(std::min<std::uint64_t>(count_.load(std::memory_order_acquire), kKept));
    if (count == 0) return {};
    std::vector<std::uint64_t> sorted(count);
    for (std::size_t i = 0; i < count; ++i) sorted[i] = kept_[i].load(std::memory_order_acquire);
    std::sort(sorted.begin(), sorted.end());
    const auto at = [&](std::size_t percent) { return sorted[(count - 1) * percent / 100]; };
    return {min_.load(std::memory_order_relaxed), at(50), at(99), max_.load(std::memory_order_relaxed)};
  }

 private:
  std::array<std::atomic<std::uint64_t>, kKept> kept_ = {};
  std::atomic<std::uint64_t> count_ = 0, min_ = 0, max_ = 0;
};

}  // namespace colo
