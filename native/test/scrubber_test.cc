#include "../core/scrubber.h"

#include <gtest/gtest.h>

#include <thread>

#include "../core/scrub_stream.h"
#include "engine_harness.h"

namespace colo {
namespace {

using testing::ModelledGuest;

constexpr std::uint64_t kPages = 70 + 3 + 40;

// The slice that comes next, when all of it has been hashed.
ScrubSlice whole_slice(Scrubber& scrubber, std::uint64_t pages) {
  ScrubSlice slice;
  auto wait = std::chrono::milliseconds(1);
  EXPECT_TRUE(testing::wait_until([&] {
    scrubber.begin();
    std::this_thread::sleep_for(wait);
    wait *= 2;  // a busy machine takes its time
    slice = scrubber.take();
    return slice.hashes.size() == pages;
  }));
  return slice;
}

class ScrubberTest : public ::testing::Test {
 protected:
  ScrubberTest() {
    std::mt19937_64 random(1);
    for (std::size_t block = 0; block < 3; ++block) {
      const std::uint64_t bytes = guest_.blocks()[block].size;
      guest_.scribble(block, 0, bytes, random());
      dirty_.emplace_back(guest_.blocks()[block].pages());
    }
  }

  std::uint64_t true_hash(std::uint64_t page) const {
    std::size_t block = 0;
    for (; page >= guest_.blocks()[block].pages(); ++block) page -= guest_.blocks()[block].pages();
    return hash_of_page(guest_.model()[block].data() + page * kPageSize);
  }

  ModelledGuest guest_{{{70, true}, {3, false}, {40, false}}};
  GuestMemory memory_{guest_.pid(), guest_.blocks()};
  std::vector<DirtyBitmap> dirty_;
};

TEST_F(ScrubberTest, SlicesFollowOneAnotherThroughAllBlocksAndBegin) {
  Scrubber scrubber(memory_, nullptr, 50);
  for (std::uint64_t sent = 0; sent < 10 * kPages; sent += 50) {
    EXPECT_EQ(scrubber.rounds(), sent / kPages);
    const ScrubSlice slice = whole_slice(scrubber, 50);
    EXPECT_EQ(slice.first, sent % kPages);
    for (std::uint64_t i = 0; i < 50; ++i)
      ASSERT_EQ(slice.hashes[i], true_hash((slice.first + i) % kPages)) << slice.first + i;
    scrubber.sent(slice);
  }
}

TEST_F(ScrubberTest, WhatIsNotSentIsHashedAgain) {
  Scrubber scrubber(memory_, nullptr, 20);
  const ScrubSlice first = whole_slice(scrubber, 20);
  guest_.scribble(0, 5 * kPageSize, 100, 99);
  const ScrubSlice second = whole_slice(scrubber, 20);
  EXPECT_EQ(first.first, second.first);
  EXPECT_NE(first.hashes[5], second.hashes[5]);
  EXPECT_EQ(second.hashes[5], true_hash(5));
}

TEST_F(ScrubberTest, SliceIsNeverLongerThanAllOfRam) {
  Scrubber scrubber(memory_, nullptr, 1u << 20);
  scrubber.sent(whole_slice(scrubber, kPages));
  EXPECT_EQ(scrubber.rounds(), 1u);
}

TEST_F(ScrubberTest, NothingIsHashedAfterTakeOrStop) {
  Scrubber scrubber(memory_, nullptr, kPages);
  EXPECT_TRUE(scrubber.take().hashes.empty());
  scrubber.begin();
  scrubber.stop();
  EXPECT_TRUE(scrubber.take().hashes.empty());
  whole_slice(scrubber, kPages);
  EXPECT_TRUE(scrubber.take().hashes.empty());
}

TEST_F(ScrubberTest, FramesLeaveOutWhatIsDirty) {
  Scrubber scrubber(memory_, nullptr, kPages);
  const ScrubSlice slice = whole_slice(scrubber, kPages);
  dirty_[0].set(1, 2);
  dirty_[0].set(69, 1);
  dirty_[1].set_all();  // no frame for this block
  const ScrubFrames frames = scrubber.frames_of(slice, dirty_);
  EXPECT_EQ(frames.skipped_pages, 6u);
  EXPECT_EQ(frames.checked_pages, kPages - 6);
  ASSERT_EQ(frames.payloads.size(), 2u);
  const std::vector<std::uint64_t> lengths = {70, 3, 40};
  EXPECT_EQ(validate_scrub(frames.payloads[0], lengths).block, 0);
  EXPECT_EQ(validate_scrub(frames.payloads[1], lengths).block, 2);
  EXPECT_EQ(check_scrub(memory_, frames.payloads[0]), 67u);
  EXPECT_EQ(check_scrub(memory_, frames.payloads[1]), 40u);
  // What was dirty may have changed meanwhile; what wasn't may not.
  guest_.scribble(0, 2 * kPageSize, 100, 7);
  EXPECT_EQ(check_scrub(memory_, frames.payloads[0]), 67u);
  guest_.scribble(0, 3 * kPageSize, 1, 7);
  EXPECT_THROW(check_scrub(memory_, frames.payloads[0]), Error);
}

// Changed and changed back is no write for a tracker that compares.
TEST_F(ScrubberTest, ShadowIsHashedInTheGuestsPlace) {
  Shadow shadow(memory_);
  for (std::size_t block = 0; block < 3; ++block)
    memory_.read(block, 0, {shadow.page(block, 0), guest_.blocks()[block].size});
  const std::uint64_t before = true_hash(5);
  guest_.scribble(0, 5 * kPageSize, 100, 99);
  Scrubber scrubber(memory_, &shadow, kPages);
  EXPECT_EQ(whole_slice(scrubber, kPages).hashes[5], before);
  scrubber.begin();
  scrubber.stop();
  scrubber.wait_for_shadow();
  *shadow.page(0, 5) = std::byte{0};  // a race, if somebody still read it
}

TEST(Scrubber, LongRunsAreSplitIntoFrames) {
  ModelledGuest guest({{kScrubPagesMax + 10, false}});
  const GuestMemory memory(guest.pid(), guest.blocks());
  Scrubber scrubber(memory, nullptr, kScrubPagesMax + 10);
  const ScrubSlice slice = whole_slice(scrubber, kScrubPagesMax + 10);
  EXPECT_GT(slice.cpu_ns, 0u);
  const std::vector<DirtyBitmap> dirty(1, DirtyBitmap(kScrubPagesMax + 10));
  const ScrubFrames frames = scrubber.frames_of(slice, dirty);
  ASSERT_EQ(frames.payloads.size(), 2u);
  EXPECT_EQ(check_scrub(memory, frames.payloads[0]), kScrubPagesMax);
  EXPECT_EQ(check_scrub(memory, frames.payloads[1]), 10u);
}

// What a balloon gives back to the host: the tracker doesn't see it, and to read it would bring it back.
TEST(Scrubber, PagesOfASharedBackendWithoutMemoryAreLeftOut) {
  ModelledGuest guest({{64, true}});
  guest.scribble(0, 8 * kPageSize, 2 * kPageSize, 5);
  const GuestMemory memory(guest.pid(), guest.blocks());
  Scrubber scrubber(memory, nullptr, 64);
  const ScrubSlice slice = whole_slice(scrubber, 64);
  const std::vector<DirtyBitmap> dirty(1, DirtyBitmap(64));
  const ScrubFrames frames = scrubber.frames_of(slice, dirty);
  EXPECT_EQ(frames.checked_pages, 2u);
  EXPECT_EQ(frames.skipped_pages, 62u);
  ASSERT_EQ(frames.payloads.size(), 1u);
  EXPECT_EQ(check_scrub(memory, frames.payloads[0]), 2u);
}

TEST(Scrubber, RamThatCannotBeReadIsToldOnce) {
  ModelledGuest guest({{64, false}});
  const GuestMemory memory(guest.pid(), guest.blocks());
  Scrubber scrubber(memory, nullptr, 64);
  guest.kill();
  std::string code;
  ASSERT_TRUE(testing::wait_until([&] {
    scrubber.begin();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    try {
      scrubber.take();
    } catch (const Error& error) {
      code = error.code();
    }
    return !code.empty();
  }));
  EXPECT_EQ(code, "ERR_COLO_GUEST_MEMORY");
  EXPECT_TRUE(scrubber.take().hashes.empty());
}

}  // namespace
}  // namespace colo
