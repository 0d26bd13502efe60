#include "../core/dirty_bitmap.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace colo {
namespace {

// The obvious bitmap.
struct Oracle {
  std::vector<bool> bits;

  explicit Oracle(std::uint64_t pages) : bits(pages) {}
  void set(std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t i = first; i < first + count; ++i) bits[i] = true;
  }
  std::vector<PageRun> runs() const {
    std::vector<PageRun> found;
    for (std::uint64_t page = 0; page < bits.size(); ++page) {
      if (!bits[page]) continue;
      if (page == 0 || !bits[page - 1]) found.push_back({page, 0});
      ++found.back().count;
    }
    return found;
  }
};

void expect_equal(const DirtyBitmap& bitmap, const Oracle& oracle) {
  ASSERT_EQ(bitmap.pages(), oracle.bits.size());
  EXPECT_EQ(bitmap.count(),
            static_cast<std::uint64_t>(std::count(oracle.bits.begin(), oracle.bits.end(), true)));
  std::vector<PageRun> runs;
  bitmap.append_runs(runs);
  EXPECT_EQ(runs, oracle.runs());
  for (std::uint64_t page = 0; page < bitmap.pages(); ++page)
    ASSERT_EQ(bitmap.test(page), oracle.bits[page]) << page;
}

// Lengths around the borders of words (64) and of the groups of words that loops work on (512).
class DirtyBitmapOfLength : public ::testing::TestWithParam<std::uint64_t> {
 protected:
  const std::uint64_t pages_ = GetParam();
  std::mt19937_64 random_{pages_};

  // Runs of all lengths, many of them touching each other or the ends.
  void set_at_random(DirtyBitmap& bitmap, Oracle& oracle) {
    for (std::uint64_t i = random_() % 12; i > 0; --i) {
      const std::uint64_t first = random_() % (pages_ + 1);
      const std::uint64_t longest =
          std::min<std::uint64_t>(pages_ - first, std::uint64_t{1} << random_() % 12);
      const std::uint64_t count = random_() % (longest + 1);
      bitmap.set(first, count);
      oracle.set(first, count);
    }
  }
};

TEST_P(DirtyBitmapOfLength, BehavesAsTheOracle) {
  for (int round = 0; round < 40; ++round) {
    DirtyBitmap bitmap(pages_);
    Oracle oracle(pages_);
    set_at_random(bitmap, oracle);
    expect_equal(bitmap, oracle);
  }
}

TEST_P(DirtyBitmapOfLength, MergesAsTheOracle) {
  for (int round = 0; round < 40; ++round) {
    DirtyBitmap ours(pages_), theirs(pages_);
    Oracle oracle(pages_), their_oracle(pages_);
    set_at_random(ours, oracle);
    set_at_random(theirs, their_oracle);
    ours.merge(theirs);
    for (std::uint64_t page = 0; page < pages_; ++page)
      oracle.bits[page] = oracle.bits[page] || their_oracle.bits[page];
    expect_equal(ours, oracle);
    expect_equal(theirs, their_oracle);
  }
}

TEST_P(DirtyBitmapOfLength, ClearsAndAsksForRunsAsTheOracle) {
  for (int round = 0; round < 40 && pages_ > 0; ++round) {
    DirtyBitmap bitmap(pages_);
    Oracle oracle(pages_);
    set_at_random(bitmap, oracle);
    for (int i = 0; i < 10; ++i) {
      const std::uint64_t first = random_() % pages_, count = random_() % (pages_ - first) + 1;
      bool all = true;
      for (std::uint64_t page = first; page < first + count; ++page) all = all && oracle.bits[page];
      EXPECT_EQ(bitmap.all_set(first, count), all);
      // The next run, by looking at each page.
      const std::uint64_t from = random_() % (pages_ + 2), longest = random_() % 200 + 1;
      std::uint64_t begin = from;
      while (begin < pages_ && !oracle.bits[begin]) ++begin;
      std::uint64_t end = begin;
      while (end < pages_ && end - begin < longest && oracle.bits[end]) ++end;
      const PageRun run = bitmap.next_run(from, longest);
      EXPECT_EQ(run.count, end - begin);
      if (run.count > 0) {
        EXPECT_EQ(run.first, begin);
      }
      bitmap.clear(first, count / 3);
      for (std::uint64_t page = first; page < first + count / 3; ++page) oracle.bits[page] = false;
    }
    expect_equal(bitmap, oracle);
  }
}

TEST_P(DirtyBitmapOfLength, SetsAndClearsAll) {
  DirtyBitmap bitmap(pages_);
  Oracle oracle(pages_);
  bitmap.set_all();
  oracle.set(0, pages_);
  expect_equal(bitmap, oracle);
  bitmap.clear();
  expect_equal(bitmap, Oracle(pages_));
}

INSTANTIATE_TEST_SUITE_P(Lengths, DirtyBitmapOfLength,
                         ::testing::Values(0, 1, 63, 64, 65, 127, 128, 511, 512, 513, 1024, 1535, 5000));

TEST(DirtyBitmap, AppendsRunsToWhatIsThere) {
  DirtyBitmap bitmap(100);
  bitmap.set(60, 10);
  std::vector<PageRun> runs{{1, 2}};
  bitmap.append_runs(runs);
  EXPECT_EQ(runs, (std::vector<PageRun>{{1, 2}, {60, 10}}));
}

TEST(DirtyBitmapDeathTest, RefusesWhatLiesOutside) {
  DirtyBitmap bitmap(100);
  EXPECT_DEATH(bitmap.set(100, 1), "assertion failed");
  EXPECT_DEATH(bitmap.set(1, ~std::uint64_t{0}), "assertion failed");
  EXPECT_DEATH(bitmap.clear(99, 2), "assertion failed");
  EXPECT_DEATH((void)bitmap.all_set(99, 2), "assertion failed");
  EXPECT_DEATH((void)bitmap.all_set(0, 0), "assertion failed");
  EXPECT_DEATH(bitmap.test(100), "assertion failed");
  EXPECT_DEATH(bitmap.merge(DirtyBitmap(101)), "assertion failed");
}

}  // namespace
}  // namespace colo
