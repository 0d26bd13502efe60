// A limit on what is sent a second.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <mutex>

namespace colo {

// Lets so many bytes a second pass (0: no limit), over all the threads that ask. Unused time isn't saved up.
class Pace {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Pace(std::uint64_t bytes_per_second) : bytes_per_second_(bytes_per_second) {}

  // When a thread that has just sent `bytes` may send the next.
  Clock::time_point after(std::uint64_t bytes) {
    const auto now = Clock::now();
    if (bytes_per_second_ == 0) return now;
    const auto cost =
        std::chrono::duration<double>(static_cast<double>(bytes) / static_cast<double>(bytes_per_second_));
    const std::lock_guard lock(mutex_);
    next_ = std::max(next_, now) + std::chrono::duration_cast<Clock::duration>(cost);
    return next_;
  }

 private:
  const std::uint64_t bytes_per_second_;
  std::mutex mutex_;
  Clock::time_point next_;
};

}  // namespace colo
