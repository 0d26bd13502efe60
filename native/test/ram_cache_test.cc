#include "../core/ram_cache.h"

#include <gtest/gtest.h>

#include "../core/page_delta.h"
#include "engine_harness.h"

namespace colo {
namespace {

using testing::Bytes;
using testing::ModelledGuest;
using testing::ram_of;

class RamCacheTest : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 16, kLimit = 8u << 20;

  // Stages one page full of `value` as a raw entry.
  void stage(unsigned lane, std::uint64_t page, unsigned value) {
    const Bytes data(kPageSize, std::byte(value));
    EntryWriter writer(1u << 20, 16);
    writer.add_raw(0, page, data.data());
    const std::span<std::byte> room = cache_.reserve(lane, writer.payload_bytes());
    std::size_t at = 0;
    for (const iovec& piece : writer.pieces()) {
      std::memcpy(room.data() + at, piece.iov_base, piece.iov_len);
      at += piece.iov_len;
    }
    cache_.add_pages(lane, room);
  }
  void expect_page(std::uint64_t page, unsigned value) {
    const Bytes ram = ram_of(guest_)[0];
    const Bytes expected(kPageSize, std::byte(value));
    EXPECT_EQ(std::memcmp(ram.data() + page * kPageSize, expected.data(), kPageSize), 0) << "page " << page;
  }
  void expect_untouched() { EXPECT_EQ(ram_of(guest_)[0], Bytes(kPages * kPageSize)); }

  ModelledGuest guest_{{{kPages, false}}};
  GuestMemory memory_{guest_.pid(), guest_.blocks()};
  RamCache cache_{memory_, kLimit};
};

TEST_F(RamCacheTest, NothingReachesGuestRamBeforeTheFlush) {
  cache_.open(1, 2);
  stage(0, 3, 30);
  stage(1, 4, 40);
  cache_.complete();
  cache_.commit(1);
  expect_untouched();
  cache_.flush();
  expect_page(3, 30);
  expect_page(4, 40);
  expect_page(5, 0);
}

TEST_F(RamCacheTest, NextEpochIsStagedWhileTheLastIsFlushed) {
  cache_.open(1, 1);
  stage(0, 1, 10);
  cache_.complete();
  cache_.open(2, 1);
  stage(0, 1, 20);
  cache_.commit(1);
  cache_.flush();
  expect_page(1, 10);
  cache_.complete();
  cache_.commit(2);
  cache_.flush();
  expect_page(1, 20);
}

TEST_F(RamCacheTest, IncompleteEpochCannotBeCommittedAndIsThrownAwayWhole) {
  cache_.open(1, 1);
  stage(0, 1, 10);
  EXPECT_THROW(cache_.commit(1), Error);
  cache_.discard();
  EXPECT_THROW(cache_.commit(1), Error);
  expect_untouched();
  cache_.open(1, 1);  // of the next session
  stage(0, 2, 20);
  cache_.complete();
  cache_.commit(1);
  cache_.flush();
  expect_page(1, 0);
  expect_page(2, 20);
}

TEST_F(RamCacheTest, DiscardTakesACompleteEpochButNeverACommittedOne) {
  cache_.open(1, 1);
  stage(0, 1, 10);
  cache_.complete();
  cache_.commit(1);
  cache_.open(2, 1);
  stage(0, 2, 20);
  cache_.complete();
  cache_.discard();
  EXPECT_THROW(cache_.commit(2), Error);
  cache_.commit(1);
  cache_.flush();
  expect_page(1, 10);
  expect_page(2, 0);
}

TEST_F(RamCacheTest, CommittedEpochCanBeFlushedAgainUntilTheNextIsCommitted) {
  const Bytes vmstate(100, std::byte{9});
  cache_.open(1, 1);
  stage(0, 1, 10);
  const std::span<std::byte> room = cache_.reserve(0, vmstate.size());
  std::memcpy(room.data(), vmstate.data(), vmstate.size());
  cache_.set_vmstate(room);
  cache_.complete();
  cache_.commit(1);
  cache_.flush();
  const Bytes other(kPageSize, std::byte{77});
  const MemoryWrite write = {kPageSize, other.data(), other.size()};
  memory_.write(0, {&write, 1});
  cache_.commit(1);
  cache_.flush();
  expect_page(1, 10);
  EXPECT_EQ(Bytes(cache_.committed_vmstate().begin(), cache_.committed_vmstate().end()), vmstate);
  cache_.open(2, 1);
  cache_.complete();
  cache_.commit(2);
  EXPECT_THROW(cache_.commit(1), Error);
}

TEST_F(RamCacheTest, LimitHoldsOverAllEpochsAndRoomComesBack) {
  constexpr std::size_t kFrame = 1u << 20;
  for (std::uint64_t epoch = 1; epoch < 40; ++epoch) {  // far more in sum than the limit
    cache_.open(epoch, 1);
    for (int frame = 0; frame < 4; ++frame) cache_.reserve(0, kFrame);
    if (epoch > 1) {  // the committed one holds the other half
      try {
        cache_.reserve(0, 1);
        FAIL() << "epoch " << epoch;
      } catch (const Error& error) {
        EXPECT_STREQ(error.code(), "ERR_COLO_STAGING_LIMIT");
      }
    }
    cache_.complete();
    cache_.commit(epoch);
  }
  cache_.open(40, 1);
  EXPECT_THROW(cache_.reserve(0, kLimit), Error);
  cache_.discard();
}

TEST_F(RamCacheTest, LargePayloadsLieInOnePieceAndSmallOnesStayWhereTheyAre) {
  cache_.open(1, 1);
  std::vector<std::span<std::byte>> rooms;
  for (const std::size_t size : {16u, 1u << 20, 3u << 20, 1u << 20, 24u}) {
    rooms.push_back(cache_.reserve(0, size));
    std::memset(rooms.back().data(), static_cast<int>(rooms.size()), size);
  }
  for (std::size_t i = 0; i < rooms.size(); ++i) {
    for (const std::byte byte : rooms[i]) ASSERT_EQ(byte, std::byte(i + 1));
  }
}

TEST_F(RamCacheTest, PeerThatDoesNotWaitForCommitsIsRefused) {
  cache_.open(1, 1);
  cache_.complete();
  cache_.open(2, 1);
  try {
    cache_.complete();
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_STREAM");
  }
}

TEST_F(RamCacheTest, FlushAfterTheGuestsDeathIsAnError) {
  cache_.open(1, 1);
  stage(0, 1, 10);
  cache_.complete();
  cache_.commit(1);
  guest_.kill();
  try {
    cache_.flush();
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_GUEST_MEMORY");
  }
}

}  // namespace
}  // namespace colo
