#include "../core/capture.h"

#include <algorithm>
#include <random>
#include <string>

#include "../core/error.h"
#include "child_guest.h"

namespace colo {
namespace {

using testing::Backing;
using testing::ChildGuest;

// What QEMU's RAM looks like: several blocks, reached in different ways.
const std::vector<testing::BlockSpec> kBlocks = {{Backing::memfd, 3000},
                                                 {Backing::private_anonymous, 1500},
                                                 {Backing::memfd, 1},
                                                 {Backing::private_anonymous, 700}};
constexpr std::uint64_t kAllPages = 3000 + 1500 + 1 + 700;

class CaptureTest : public ::testing::Test {
 protected:
  CaptureTest() {
    for (std::size_t block = 0; block < kBlocks.size(); ++block) {
      guest_.write(block, 0, kBlocks[block].pages, block);
      dirty_.emplace_back(kBlocks[block].pages);
    }
  }

  void set_at_random(std::mt19937& random) {
    for (DirtyBitmap& bitmap : dirty_) {
      bitmap.clear();
      for (std::uint64_t i = random() % 300; i > 0; --i) {
        const std::uint64_t first = random() % bitmap.pages();
        bitmap.set(first, std::min<std::uint64_t>(1 + random() % 20, bitmap.pages() - first));
      }
    }
  }

  // Page by page: `runs` name exactly the dirty pages, in order, one after the other in staging, and hold
  // what the guest wrote.
  void expect_captured(const std::vector<CapturedRun>& runs, Staging& staging) {
    std::vector<std::byte> page(kPageSize);
    const std::byte* next = staging.data();
    auto run = runs.begin();
    std::uint64_t offset = 0;
    for (std::size_t block = 0; block < dirty_.size(); ++block) {
      for (std::uint64_t number = 0; number < dirty_[block].pages(); ++number) {
        if (!dirty_[block].test(number)) continue;
        ASSERT_NE(run, runs.end());
        ASSERT_EQ(run->block, block);
        ASSERT_EQ(run->first + offset, number);
        ASSERT_EQ(run->data + offset * kPageSize, next);
        ChildGuest::fill(page.data(), number, block);
        ASSERT_TRUE(std::equal(page.begin(), page.end(), next)) << "block " << block << " page " << number;
        next += kPageSize;
        if (++offset == run->count) {
          ++run;
          offset = 0;
        }
      }
    }
    EXPECT_EQ(run, runs.end());
  }

  ChildGuest guest_{kBlocks};
  GuestMemory memory_{guest_.pid(), guest_.blocks()};
  std::vector<DirtyBitmap> dirty_;
};

TEST_F(CaptureTest, CopiesTheDirtyPagesInOrder) {
  std::mt19937 random(3);
  Staging staging(memory_.total_bytes(), 1 << 20);
  for (const unsigned threads : {1u, 2u, 3u}) {
    WorkerPool pool(threads);
    std::vector<CapturedRun> runs;
    for (int round = 0; round < 6; ++round) {
      set_at_random(random);
      runs.clear();
      std::uint64_t pages = 0;
      for (const DirtyBitmap& bitmap : dirty_) pages += bitmap.count();
      EXPECT_EQ(capture_pages(memory_, dirty_, staging, pool, runs), pages);
      expect_captured(runs, staging);
      staging.trim(pages * kPageSize);
    }
  }
}

TEST_F(CaptureTest, CopiesAllOrNothing) {
  Staging staging(memory_.total_bytes(), 0);
  WorkerPool pool(2);
  std::vector<CapturedRun> runs;
  EXPECT_EQ(capture_pages(memory_, dirty_, staging, pool, runs), 0u);
  EXPECT_TRUE(runs.empty());
  for (DirtyBitmap& bitmap : dirty_) bitmap.set_all();
  EXPECT_EQ(capture_pages(memory_, dirty_, staging, pool, runs), kAllPages);
  expect_captured(runs, staging);
}

// INVARIANT 3: a failed capture clears nothing, and says nothing of pages that it didn't copy.
TEST_F(CaptureTest, KeepsPagesDirtyWhenItFails) {
  Staging staging(memory_.total_bytes(), 0);
  WorkerPool pool(2);
  std::mt19937 random(4);
  set_at_random(random);
  dirty_[1].set_all();
  const std::uint64_t before = dirty_[0].count();
  guest_.unmap(1, 700, 1);
  std::vector<CapturedRun> runs(1);
  EXPECT_THROW(capture_pages(memory_, dirty_, staging, pool, runs), Error);
  EXPECT_EQ(runs.size(), 1u);
  EXPECT_EQ(dirty_[0].count(), before);
  EXPECT_EQ(dirty_[1].count(), 1500u);
}

std::uint64_t resident_bytes(const std::byte* begin, std::uint64_t size) {
  std::vector<unsigned char> resident(size / kPageSize);
  EXPECT_EQ(::mincore(const_cast<std::byte*>(begin), size, resident.data()), 0);
  return static_cast<std::uint64_t>(
             std::count_if(resident.begin(), resident.end(), [](unsigned char r) { return r & 1; })) *
         kPageSize;
}

TEST(Staging, KeepsItsResidentPartOnly) {
  constexpr std::uint64_t kResident = 4 << 20;
  Staging staging(64 << 20, kResident);
  EXPECT_EQ(staging.capacity_bytes(), 64u << 20);
  EXPECT_EQ(resident_bytes(staging.data(), staging.capacity_bytes()), kResident);
  std::fill_n(staging.data(), 2 * kResident, std::byte{1});
  EXPECT_EQ(resident_bytes(staging.data(), staging.capacity_bytes()), 2 * kResident);
  staging.trim(kResident / 2);
  EXPECT_EQ(resident_bytes(staging.data(), staging.capacity_bytes()), kResident);
  EXPECT_EQ(staging.data()[0], std::byte{1});
}

TEST(Staging, KeepsWhatManyEpochsTakeAndGivesItBackByAndBy) {
  constexpr std::uint64_t kResident = 4 << 20, kUsed = 48 << 20;
  Staging staging(64 << 20, kResident);
  std::uint64_t before = kUsed;
  std::fill_n(staging.data(), kUsed, std::byte{1});
  staging.trim(kUsed);
  EXPECT_EQ(resident_bytes(staging.data(), staging.capacity_bytes()), kUsed);
  for (int epoch = 0; before > kResident; ++epoch) {
    ASSERT_LT(epoch, 100);
    staging.trim(0);
    const std::uint64_t now = resident_bytes(staging.data(), staging.capacity_bytes());
    EXPECT_LE(now, before);
    before = now;
  }
  EXPECT_EQ(before, kResident);
}

TEST(Staging, MayBeResidentAsAWhole) {
  Staging staging(5 * kPageSize, 1 << 20);
  EXPECT_EQ(resident_bytes(staging.data(), staging.capacity_bytes()), 5 * kPageSize);
  staging.trim(0);
  EXPECT_EQ(resident_bytes(staging.data(), staging.capacity_bytes()), 5 * kPageSize);
}

}  // namespace
}  // namespace colo
