#include "../core/disk_log.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <random>
#include <thread>

#include "../core/error.h"
#include "disk_log_harness.h"

namespace colo {
namespace {

using testing::apply;
using testing::disk_log_options;
using testing::write;
using Bytes = testing::DiskImage;

constexpr std::uint64_t kSize = testing::kLogSize;

class DiskLogTest : public ::testing::Test {
 protected:
  // A session in which nothing differs, as after the first copy.
  void begin() {
    log_.begin_session(false);
    while (log_.next_differing(1000).count != 0) {
    }
    (void)log_.take_first_copy_writes();
  }
  void write_to(std::uint64_t offset, std::uint64_t length = 4096) {
    write(log_, source_, offset, length, std::byte{7});
  }

  Bytes source_ = Bytes(kSize);
  std::atomic<int> pressures_ = 0;
  std::vector<std::string> failures_;
  DiskLogOptions options_ = [] {
    DiskLogOptions options = disk_log_options();
    options.limit_bytes = 2u << 20;
    options.pressure_bytes = 1u << 20;
    return options;
  }();
  DiskLog log_{options_,
               {[this] { ++pressures_; }, [this](const std::string& why) { failures_.push_back(why); }}};
};

TEST_F(DiskLogTest, KnowsWhatTheStandbyLacks) {
  EXPECT_EQ(log_.stats().differing_blocks, 13u);  // at first, everything
  begin();
  EXPECT_EQ(log_.stats().differing_blocks, 0u);
  log_.seal(1);
  (void)log_.take_sealed(1);
  log_.confirm(1);
  write_to(0);
  write_to(2 * kDiskBlockBytes - 1, 2);
  log_.seal(2);
  (void)log_.take_sealed(2);
  write_to(5 * kDiskBlockBytes);
  log_.seal(3);
  write_to(12 * kDiskBlockBytes, 5000);
  EXPECT_EQ(log_.stats().differing_blocks, 0u);
  log_.end_session();
  EXPECT_EQ(log_.stats().differing_blocks, 5u);  // sent and not confirmed, sealed, running
  write_to(12 * kDiskBlockBytes);
  write_to(7 * kDiskBlockBytes);
  EXPECT_EQ(log_.stats().differing_blocks, 6u);
  log_.begin_session(false);
  EXPECT_EQ(log_.next_differing(100), (BlockRun{0, 3}));
  EXPECT_EQ(log_.next_differing(100), (BlockRun{5, 1}));
  log_.end_session();
  EXPECT_EQ(log_.stats().differing_blocks, 6u);  // taken for the copy, and not confirmed
  EXPECT_EQ(log_.stats().writes, 6u);
}

TEST_F(DiskLogTest, ConfirmedEpochsAreForgottenOthersAreNot) {
  begin();
  for (std::uint64_t epoch = 1; epoch <= 3; ++epoch) {
    write_to(epoch * kDiskBlockBytes);
    log_.seal(epoch);
    (void)log_.take_sealed(epoch);
  }
  log_.confirm(2);
  log_.end_session();
  EXPECT_EQ(log_.stats().differing_blocks, 1u);
  log_.confirm(3);  // too late
  EXPECT_EQ(log_.stats().differing_blocks, 1u);
  // A confirmation that belongs to the session before confirms nothing of this one.
  begin();
  log_.confirm(3);
  log_.end_session();
  EXPECT_EQ(log_.stats().differing_blocks, 1u);
}

TEST_F(DiskLogTest, CheckpointsThatNobodyConfirmsAreNotRememberedForEver) {
  begin();
  std::uint64_t epoch = 0;
  try {
    while (++epoch < 1000) {
      log_.seal(epoch);
      (void)log_.take_sealed(epoch);
    }
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_DISK");
  }
  EXPECT_LT(epoch, 1000u);
}

TEST_F(DiskLogTest, WritesToWhatIsStillToBeCopiedAreNotLogged) {
  log_.begin_session(true);
  ASSERT_EQ(log_.next_differing(4), (BlockRun{0, 4}));
  write_to(4 * kDiskBlockBytes, kDiskBlockBytes);
  write_to(4 * kDiskBlockBytes - 1, 2);  // half of it is
  write_to(3 * kDiskBlockBytes);
  log_.append_zeros(5 * kDiskBlockBytes, kSize - 5 * kDiskBlockBytes);
  const auto writes = log_.take_first_copy_writes();
  ASSERT_EQ(writes->entries().size(), 2u);
  EXPECT_EQ(writes->entries()[0].offset, 4 * kDiskBlockBytes - 1);
  EXPECT_EQ(writes->entries()[1].offset, 3 * kDiskBlockBytes);
}

TEST_F(DiskLogTest, LongWritesAreSplitAndMayLieInTwoChunks) {
  begin();
  Bytes expected = source_;
  std::mt19937_64 random(5);
  for (int i = 0; i < 40; ++i) {
    const std::uint64_t length = random() % (kSize - 1) + 1;
    WriteRoom room = log_.reserve(length);
    std::uint64_t bytes = 0;
    for (const auto& piece : room.pieces) {
      if (piece.bytes.empty()) continue;
      for (std::byte& byte : piece.bytes) byte = std::byte(random());
      std::memcpy(expected.data() + 1 + bytes, piece.bytes.data(), piece.bytes.size());
      bytes += piece.bytes.size();
    }
    ASSERT_EQ(bytes, length);
    log_.append(std::move(room), 1);
    EXPECT_EQ(log_.seal(1), length);
    const auto writes = log_.take_sealed(1);
    for (const DiskWrite& entry : writes->entries()) EXPECT_LE(entry.length, kDiskEntryBytesMax);
    apply(source_, *writes);
    ASSERT_TRUE(source_ == expected);
    log_.confirm(1);
  }
}

TEST_F(DiskLogTest, ACheckpointIsNeverSentWithoutItsWrites) {
  const auto code = [this](std::uint64_t epoch) -> std::string {
    try {
      (void)log_.take_sealed(epoch);
      return "";
    } catch (const Error& error) {
      return error.code();
    }
  };
  EXPECT_EQ(code(1), "ERR_COLO_LINK");  // no session
  log_.begin_session(true);
  EXPECT_EQ(code(1), "ERR_COLO_LINK");  // nothing sealed in it
  log_.seal(1);
  EXPECT_EQ(code(1), "ERR_COLO_DISK");  // the copy hasn't come to its end
  log_.lose("the reason");
  EXPECT_EQ(code(1), "ERR_COLO_DISK");
  EXPECT_EQ(failures_, std::vector<std::string>{"the reason"});
  log_.lose("again");
  EXPECT_EQ(failures_.size(), 1u);
  log_.end_session();
  EXPECT_EQ(code(1), "ERR_COLO_LINK");
}

TEST_F(DiskLogTest, PressureIsToldOnceASeal) {
  begin();
  for (int i = 0; i < 20; ++i) write_to(0, 1u << 16);
  EXPECT_EQ(pressures_, 1);
  log_.seal(1);
  EXPECT_EQ(log_.stats().logged_bytes, 20 * ((1u << 16) + kWriteOverheadBytes));
  write_to(0);  // what was sealed still lies there
  write_to(0);
  EXPECT_EQ(pressures_, 2);
  (void)log_.take_sealed(1);
  log_.seal(2);
  write_to(0);
  EXPECT_EQ(pressures_, 2);
}

TEST_F(DiskLogTest, AtTheLimitAWriteWaitsForRoom) {
  options_.stall_ms = 3'600'000;
  DiskLog log(options_, {[] {}, [](const std::string&) {}});
  log.begin_session(false);
  while (log.next_differing(1000).count != 0) {
  }
  const auto fill = [&] {
    while (!log.must_wait(1u << 16)) write(log, source_, 0, 1u << 16, std::byte{1});
  };
  std::atomic<int> done = 0;
  const auto write_one = [&] {
    Bytes other = source_;
    write(log, other, 0, 1u << 16, std::byte{1});
    ++done;
  };
  const std::vector<std::function<void()>> ways_out = {
      // A checkpoint has been sent.
      [&] {
        log.seal(1);
        auto writes = log.take_sealed(1);
        EXPECT_EQ(done, 0);
        writes.reset();
      },
      [&] { log.hurry(); },
      [&] { log.lose("test"); },
      [&] { log.end_session(); },
  };
  for (const auto& way_out : ways_out) {
    log.end_session();
    log.begin_session(false);
    while (log.next_differing(1000).count != 0) {
    }
    fill();
    done = 0;
    std::thread waiting(write_one);
    way_out();
    waiting.join();
    EXPECT_EQ(done, 1);
  }
  // The next seal ends the hurry.
  log.end_session();
  log.begin_session(false);
  while (log.next_differing(1000).count != 0) {
  }
  fill();
  log.hurry();
  EXPECT_FALSE(log.must_wait(1u << 16));
  log.seal(1);
  EXPECT_TRUE(log.must_wait(1u << 16));
}

TEST_F(DiskLogTest, AtTwiceTheLimitTheStandbyIsGivenUpAndNothingGrows) {
  begin();
  int writes = 0;
  while (failures_.empty()) {
    ASSERT_LT(++writes, 1000);
    write_to(static_cast<std::uint64_t>(writes % 3) * kDiskBlockBytes, 1u << 15);
  }
  EXPECT_NE(failures_[0].find("disk0"), std::string::npos);
  EXPECT_EQ(log_.stats().logged_bytes, 0u);
  EXPECT_EQ(log_.stats().differing_blocks, 13u);  // the copy wasn't confirmed
  EXPECT_FALSE(log_.must_wait(1u << 20));
  for (int i = 0; i < 1000; ++i) write_to(0, 1u << 15);
  EXPECT_EQ(log_.stats().logged_bytes, 0u);
  EXPECT_EQ(failures_.size(), 1u);
}

TEST_F(DiskLogTest, WritesWithoutDataHaveACostToo) {
  begin();
  log_.hurry();
  while (failures_.empty()) log_.append_zeros(0, kSize);
  EXPECT_LE(log_.stats().writes, 2 * options_.limit_bytes / kWriteOverheadBytes + 1);
}

TEST_F(DiskLogTest, RefusesWhatLiesOutside) {
  EXPECT_DEATH(log_.append_zeros(kSize, 1), "assertion failed");
  EXPECT_DEATH(log_.append_zeros(0, 0), "assertion failed");
  EXPECT_DEATH(log_.append_zeros(1, kSize), "assertion failed");
  EXPECT_DEATH(log_.append(log_.reserve(2), kSize - 1), "assertion failed");
  EXPECT_DEATH((void)log_.reserve(kWriteBytesMax + 1), "assertion failed");
}

}  // namespace
}  // namespace colo
