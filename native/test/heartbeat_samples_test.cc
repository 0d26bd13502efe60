#include "../core/heartbeat_samples.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <random>
#include <thread>
#include <vector>

namespace colo {
namespace {

// The slow way: everything is kept, the last ones are sorted.
HeartbeatQuantiles quantiles_of(const std::vector<std::uint64_t>& all) {
  std::vector<std::uint64_t> last(
      all.end() - std::min<std::ptrdiff_t>(std::ssize(all), HeartbeatSamples::kKept), all.end());
  std::sort(last.begin(), last.end());
  return {*std::min_element(all.begin(), all.end()), last[(last.size() - 1) / 2],
          last[(last.size() - 1) * 99 / 100], *std::max_element(all.begin(), all.end())};
}

void expect_equal(const HeartbeatQuantiles& got, const HeartbeatQuantiles& expected) {
  EXPECT_EQ(got.min, expected.min);
  EXPECT_EQ(got.p50, expected.p50);
  EXPECT_EQ(got.p99, expected.p99);
  EXPECT_EQ(got.max, expected.max);
}

TEST(HeartbeatSamples, AreZeroWhileThereAreNone) { expect_equal(HeartbeatSamples().quantiles(), {}); }

TEST(HeartbeatSamples, AreWhatSortingAllOfThemSays) {
  std::mt19937_64 random(7);
  HeartbeatSamples samples;
  std::vector<std::uint64_t> all;
  while (all.size() < 3 * HeartbeatSamples::kKept) {
    all.push_back(random() % 100'000);
    samples.add(all.back());
    if (all.size() < 10 || all.size() % 1'009 == 0 || all.size() % HeartbeatSamples::kKept < 2)
      expect_equal(samples.quantiles(), quantiles_of(all));
  }
}

TEST(HeartbeatSamples, AreReadWhileTheyCome) {
  HeartbeatSamples samples;
  std::atomic<bool> ended = false;
  std::thread reader([&] {
    while (!ended) {
      const HeartbeatQuantiles got = samples.quantiles();
      EXPECT_LE(got.min, got.p50);
      EXPECT_LE(got.p50, got.p99);
      EXPECT_LE(got.p99, got.max);
    }
  });
  // From the middle outwards, so that the extremes change all the time, too.
  for (std::uint64_t i = 0; i < 100'000; ++i) samples.add(i % 2 == 0 ? 1'000'000 - i : 1'000'000 + i);
  ended = true;
  reader.join();
  EXPECT_EQ(samples.quantiles().min, 1'000'000 - 99'998u);
}

}  // namespace
}  // namespace colo
