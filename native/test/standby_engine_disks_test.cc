// The engine's disks: what reaches them when, and what is left when it fails or dies.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "../core/checkpoint_stream.h"
#include "../core/standby_engine.h"
#include "disk_frames.h"
#include "engine_harness.h"
#include "test_disks.h"

namespace colo {
namespace {

using testing::apply_to;
using testing::Bytes;
using testing::contents_of;
using testing::epoch_bytes;
using testing::FailingDiskCalls;
using testing::Frames;
using testing::kDiskSize;
using testing::kGeneration;
using testing::kOtherSize;
using testing::kTestToken;
using testing::kVmstateBytes;
using testing::LoopDevice;
using testing::ModelledGuest;
using testing::operator+;
using testing::Outcome;
using testing::payload_of;
using testing::ram_of;
using testing::same_ram;
using testing::TestConnection;
using testing::TestStandby;
using testing::TinyFileSystem;
using testing::unnamed_file;
using testing::vmstate_of;
using testing::wait_until;
using testing::writes_of;

constexpr std::uint64_t kPages = 12;

class StandbyEngineDisksTest : public ::testing::Test {
 protected:
  std::vector<StandbyDiskOptions> options(DiskCalls& calls) const {
    return {{"sda", file_.get(), kDiskSize, &calls}, {"sdb", other_.get(), kOtherSize, &calls}};
  }

  // A session on one connection whose first copy filled the disks with `fill`.
  TestConnection begin(std::uint8_t fill = 0xee) {
    standby_.forget_events();
    standby_.engine->open_session(kTestToken, kGeneration, 1);
    TestConnection connection(*standby_.engine, 0, 1, kGeneration);
    Frames frames(0);
    for (std::uint64_t at = 0; at < kDiskSize; at += kDiskBlockBytes)
      frames.disk(payload_of({{0, at, Bytes(std::min(kDiskBlockBytes, kDiskSize - at), std::byte(fill))}}));
    frames.disk(payload_of({{1, 0, Bytes(kOtherSize, std::byte(fill))}}));
    connection.send(frames.end().bytes);
    EXPECT_TRUE(standby_.wait_staged(0));
    disks_ = {Bytes(kDiskSize, std::byte(fill)), Bytes(kOtherSize, std::byte(fill))};
    ram_ = ram_of(guest_);
    expect_disks();
    standby_.engine->open_epoch(1);
    return connection;
  }
  void stage(TestConnection& connection, std::uint64_t epoch) {
    connection.send(epoch_bytes(epoch));
    ASSERT_TRUE(standby_.wait_staged(epoch)) << standby_.wait_failure();
  }
  void expect_disks() {
    EXPECT_TRUE(contents_of(file_.get(), kDiskSize) == disks_[0]);
    EXPECT_TRUE(contents_of(other_.get(), kOtherSize) == disks_[1]);
  }
  void expect_untouched() {
    expect_disks();
    EXPECT_TRUE(same_ram(ram_of(guest_), ram_));
  }
  void expect_committed(std::uint64_t epoch) {
    apply_to(disks_, payload_of(writes_of(epoch)));
    expect_disks();
    EXPECT_EQ(ram_of(guest_)[0][3 * kPageSize], std::byte(epoch & 0xff));
    EXPECT_EQ(standby_.mailbox_vmstate(kVmstateBytes), vmstate_of(epoch, kVmstateBytes));
  }

  UniqueFd file_ = unnamed_file(kDiskSize), other_ = unnamed_file(kOtherSize);
  FailingDiskCalls calls_;
  ModelledGuest guest_{{{kPages, true}, {kPages, false}}};
  TestStandby standby_{guest_, 0, {}, options(calls_)};
  std::vector<Bytes> disks_, ram_;  // as they should be
};

TEST_F(StandbyEngineDisksTest, FirstCopyIsAppliedAsItComes) {
  standby_.engine->open_session(kTestToken, kGeneration, 1);
  TestConnection connection(*standby_.engine, 0, 1, kGeneration);
  connection.send(Frames(0).disk(payload_of({{1, 7, Bytes(9, std::byte{5})}})).bytes);
  EXPECT_TRUE(wait_until([&] { return contents_of(other_.get(), kOtherSize)[15] == std::byte{5}; }));
  EXPECT_EQ(calls_.reservations, 0u);
}

TEST_F(StandbyEngineDisksTest, LaterEpochsAreStagedThenCommittedOneAfterTheOther) {
  TestConnection connection = begin();
  for (std::uint64_t epoch = 1; epoch <= 3; ++epoch) {
    stage(connection, epoch);
    EXPECT_EQ(standby_.staged().back().disk_bytes, payload_of(writes_of(epoch)).size());
    expect_disks();  // INVARIANT 2
    ASSERT_EQ(standby_.commit(epoch), "");
    expect_committed(epoch);
    standby_.engine->open_epoch(epoch + 1);
  }
  EXPECT_EQ(standby_.sync_disks(), "");
  EXPECT_EQ(calls_.syncs, 2u);
  EXPECT_EQ(standby_.failures(), 0u);
}

TEST_F(StandbyEngineDisksTest, NextEpochIsStagedWhileTheLastWaitsForItsCommit) {
  TestConnection connection = begin();
  stage(connection, 1);
  standby_.engine->open_epoch(2);
  connection.send(Frames(2).disk(payload_of(writes_of(2))).bytes);
  EXPECT_TRUE(wait_until([&] { return connection.all_read(); }));
  expect_untouched();
  ASSERT_EQ(standby_.commit(1), "");
  expect_committed(1);
  standby_.engine->close_session();  // in the middle of the second
  ASSERT_EQ(standby_.commit(1), "");
  expect_disks();
}

TEST_F(StandbyEngineDisksTest, EpochCutAnywhereLeavesTheDisksAlone) {
  const Bytes bytes = epoch_bytes(1);
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 40; ++round) {
    TestConnection connection = begin();
    connection.send(std::span(bytes).first(random() % bytes.size()));
    connection.close();
    EXPECT_EQ(standby_.wait_failure().substr(0, 13), "ERR_COLO_LINK");
    expect_untouched();
    EXPECT_THROW(standby_.engine->commit(1, nullptr), Error);
  }
}

TEST_F(StandbyEngineDisksTest, FlippedBitIsNoticedAndLeavesTheDisksAlone) {
  const Bytes good = epoch_bytes(1);
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 60; ++round) {
    Bytes bad = good;
    const std::size_t at = random() % (round % 2 == 0 ? bad.size() : 400);
    bad[at] ^= std::byte(1 << random() % 8);
    TestConnection connection = begin();
    connection.send(bad);
    connection.close();
    ASSERT_NE(standby_.wait_failure(), "no failure") << "byte " << at;
    ASSERT_FALSE(standby_.wait_staged(1)) << "byte " << at;
    expect_untouched();
  }
}

// --- commits that fail ---

TEST_F(StandbyEngineDisksTest, FailedWriteFailsTheCommitWhichCanBeRepeated) {
  TestConnection connection = begin();
  stage(connection, 1);
  calls_.write_errno = EIO;
  EXPECT_EQ(standby_.commit(1), "ERR_COLO_DISK");
  EXPECT_EQ(ram_of(guest_)[0][3 * kPageSize], std::byte{1});
  EXPECT_TRUE(
      standby_.mailbox_untouched());  // INVARIANT 6: device state comes after the disks, or not at all
  expect_disks();
  calls_.write_errno = 0;
  ASSERT_EQ(standby_.commit(1), "");
  expect_committed(1);
}

TEST_F(StandbyEngineDisksTest, DisksAreLeftAloneWhenRamCannotBeWritten) {
  TestConnection connection = begin();
  stage(connection, 1);
  const unsigned writes = calls_.writes;
  guest_.kill();
  EXPECT_EQ(standby_.commit(1), "ERR_COLO_GUEST_MEMORY");
  EXPECT_EQ(calls_.writes, writes);  // INVARIANT 6
  expect_disks();
}

TEST(StandbyEngineDisks, BlockDeviceThatIsReadOnlyForAWhileIsBroughtToTheEpoch) {
  const LoopDevice device(1u << 20);
  const ModelledGuest guest({{kPages, false}});
  const UniqueFd fd = device.open();
  TestStandby standby(guest, 0, {}, {{"sda", fd.get(), kDiskSize}});
  standby.engine->open_session(kTestToken, kGeneration, 1);
  TestConnection connection(*standby.engine, 0, 1, kGeneration);
  connection.send(Frames(0).end().bytes);
  ASSERT_TRUE(standby.wait_staged(0));
  standby.engine->open_epoch(1);
  const Bytes payload = payload_of({{0, 512, Bytes(5000, std::byte{3})}, {0, 1000, {}, 3000}});
  connection.send(Frames(1).disk(payload).vmstate().end().bytes);
  ASSERT_TRUE(standby.wait_staged(1));
  device.set_read_only(true);
  EXPECT_EQ(standby.commit(1), "ERR_COLO_DISK");
  device.set_read_only(false);
  std::vector<Bytes> expected = {Bytes(kDiskSize)};
  EXPECT_TRUE(contents_of(fd.get(), kDiskSize) == expected[0]);
  ASSERT_EQ(standby.commit(1), "");
  apply_to(expected, payload);
  EXPECT_TRUE(contents_of(fd.get(), kDiskSize) == expected[0]);
}

// INVARIANT 2: want of space shows before the epoch counts as staged.
TEST(StandbyEngineDisks, WantOfSpaceEndsTheSessionBeforeTheEpochIsStaged) {
  const TinyFileSystem file_system(1u << 20);
  const ModelledGuest guest({{kPages, false}});
  const UniqueFd file = file_system.file("disk", kDiskSize);
  TestStandby standby(guest, 0, {}, {{"web1-sda", file.get(), kDiskSize}});
  standby.engine->open_session(kTestToken, kGeneration, 1);
  TestConnection connection(*standby.engine, 0, 1, kGeneration);
  connection.send(Frames(0).end().bytes);
  ASSERT_TRUE(standby.wait_staged(0));
  standby.engine->open_epoch(1);
  file_system.fill();
  const Bytes payload = payload_of({{0, 512, Bytes(5000, std::byte{3})}});
  connection.send(Frames(1).disk(payload).vmstate().end().bytes);
  const std::string failure = standby.wait_failure();
  EXPECT_NE(failure.find("ERR_COLO_DISK: bulk connection 0: standby disk web1-sda: no space left for"),
            std::string::npos)
      << failure;
  EXPECT_THROW(standby.engine->commit(1, nullptr), Error);
  EXPECT_TRUE(contents_of(file.get(), kDiskSize) == Bytes(kDiskSize));
}

TEST_F(StandbyEngineDisksTest, SyncReportsALostWriteEverAfter) {
  calls_.sync_errno = EIO;
  EXPECT_EQ(standby_.sync_disks(), "ERR_COLO_DISK");
  EXPECT_EQ(calls_.syncs, 2u) << "the second disk is synced all the same";
  calls_.sync_errno = 0;
  EXPECT_EQ(standby_.sync_disks(), "ERR_COLO_DISK");
}

TEST(StandbyEngineDisks, DiskThatCannotBeUsedIsRefusedAtTheStart) {
  const ModelledGuest guest({{kPages, false}});
  const UniqueFd file = unnamed_file(512);
  try {
    TestStandby(guest, 0, {}, {{"sda", file.get(), 512}, {"sdb", file.get(), 1024}});
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_DISK");
    EXPECT_EQ(std::string(error.what()).substr(0, 17), "standby disk sdb:");
  }
  EXPECT_THROW(TestStandby(guest, 0, {}, {{"sda", -1, 512}}), Error);
}

// --- order ---

// A first write that waits, so that a commit can be met at work.
class WaitingDiskCalls : public DiskCalls {
 public:
  ssize_t pwrite(int fd, const void* from, std::size_t length, off_t offset) override {
    {
      std::unique_lock lock(mutex_);
      if (!open_ && !std::exchange(reached_, true)) {
        changed_.notify_all();
        changed_.wait(lock, [this] { return open_; });
      }
    }
    return DiskCalls::pwrite(fd, from, length, offset);
  }
  void set_open(bool open) {
    const std::lock_guard lock(mutex_);
    open_ = open;
    reached_ = false;
    changed_.notify_all();
  }
  bool wait_reached() {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), [this] { return reached_; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true, reached_ = false;
};

class StandbyEngineDisksInUse : public StandbyEngineDisksTest {
 protected:
  // A commit of epoch 1 that has come as far as its first write, which waits.
  void commit_until_the_first_write() {
    TestConnection connection = begin_waiting();
    connection.send(epoch_bytes(1));
    ASSERT_TRUE(waiting_.wait_staged(1));
    gate_.set_open(false);
    waiting_.engine->commit(1, outcome_.done());
    ASSERT_TRUE(gate_.wait_reached());
  }
  TestConnection begin_waiting() {
    waiting_.engine->open_session(kTestToken, kGeneration, 1);
    TestConnection connection(*waiting_.engine, 0, 1, kGeneration);
    connection.send(Frames(0).end().bytes);
    EXPECT_TRUE(waiting_.wait_staged(0));
    waiting_.engine->open_epoch(1);
    return connection;
  }

  WaitingDiskCalls gate_;
  TestStandby waiting_{guest_, 0, {}, options(gate_)};
  Outcome<CommitResult> outcome_;
};

TEST_F(StandbyEngineDisksInUse, FirstCopyOfTheNextSessionWaitsForTheCommit) {
  commit_until_the_first_write();
  waiting_.engine->open_session(kTestToken, kGeneration, 1);
  TestConnection connection(*waiting_.engine, 0, 1, kGeneration);
  const Bytes copy = payload_of({{0, 0, Bytes(kDiskEntryBytesMax, std::byte{0x77})}});
  connection.send(Frames(0).disk(copy).bytes);
  EXPECT_TRUE(wait_until([&] { return connection.all_read(); }));
  gate_.set_open(true);
  ASSERT_EQ(outcome_.wait(), "");
  // Frames are handled in their order: when this one's block is there, the first one's is, too.
  const Bytes last(8, std::byte{0x55});
  connection.send(Frames(0).frame(FrameType::disk, payload_of({{1, 0, last}})).bytes);
  EXPECT_TRUE(wait_until([&] { return contents_of(other_.get(), 8) == last; }));
  EXPECT_TRUE(contents_of(file_.get(), kDiskEntryBytesMax) == Bytes(kDiskEntryBytesMax, std::byte{0x77}));
}

TEST_F(StandbyEngineDisksInUse, FirstCopyOfRamWaitsForTheCommit) {
  commit_until_the_first_write();
  const std::vector<Bytes> flushed = ram_of(guest_);
  waiting_.engine->open_session(kTestToken, kGeneration, 1);
  TestConnection connection(*waiting_.engine, 0, 1, kGeneration);
  connection.send(Frames(0).page(0x5a).bytes);
  EXPECT_TRUE(wait_until([&] { return connection.all_read(); }));
  EXPECT_TRUE(same_ram(ram_of(guest_), flushed));
  gate_.set_open(true);
  ASSERT_EQ(outcome_.wait(), "");
  EXPECT_TRUE(wait_until([&] { return !same_ram(ram_of(guest_), flushed); }));
}

TEST_F(StandbyEngineDisksInUse, CloseWaitsForTheCommit) {
  commit_until_the_first_write();
  std::thread opener([this] { gate_.set_open(true); });
  waiting_.engine->close();
  EXPECT_TRUE(outcome_.ended());
  opener.join();
}

TEST_F(StandbyEngineDisksInUse, CommitAndSyncAreOneAtATime) {
  commit_until_the_first_write();
  EXPECT_DEATH(waiting_.engine->sync_disks(nullptr), "busy");
  EXPECT_DEATH(waiting_.engine->commit(1, nullptr), "busy");
  EXPECT_DEATH(waiting_.engine->restore_preserved(), "busy");
  gate_.set_open(true);
  EXPECT_EQ(outcome_.wait(), "");
}

// --- comparing ---

Bytes hashes_payload(std::uint16_t disk, std::uint64_t first, const std::vector<Bytes>& blocks) {
  const DiskHashesHeader header = {disk, 0, static_cast<std::uint32_t>(blocks.size()), first};
  Bytes payload = Bytes() + std::as_bytes(std::span(&header, 1));
  for (const Bytes& block : blocks) payload = std::move(payload) + hash_of_block(block);
  return payload;
}

TEST_F(StandbyEngineDisksTest, HashesAreAnsweredInTheirPlaceAndNotCounted) {
  standby_.engine->open_session(kTestToken, kGeneration, 1);
  TestConnection connection(*standby_.engine, 0, 1, kGeneration);
  const Bytes zeros(kDiskBlockBytes), fives(kDiskBlockBytes, std::byte{5}), tail(512);
  Frames frames(0);
  frames.frame(FrameType::disk_hashes, hashes_payload(0, 6, {zeros, fives, tail}));
  frames.disk(payload_of({{0, 7 * kDiskBlockBytes, fives}}));
  frames.frame(FrameType::disk_hashes, hashes_payload(0, 6, {zeros, fives, fives}));
  frames.frame(FrameType::disk_hashes, hashes_payload(1, 1, {zeros}));
  connection.send(frames.end().bytes);
  for (const int expected : {2, 4, 0}) {
    const Bytes header = connection.receive(kFrameHeaderBytes);
    const FrameHeader answer = parse_frame_header(std::span<const std::byte, kFrameHeaderBytes>(header));
    EXPECT_EQ(answer.type, FrameType::disk_differs);
    EXPECT_EQ(answer.generation, kGeneration);
    EXPECT_EQ(answer.epoch, 0u);
    ASSERT_EQ(answer.length, 8u);
    Bytes bits(8);
    bits[0] = std::byte(expected);
    EXPECT_EQ(connection.receive(8), bits);
  }
  EXPECT_TRUE(standby_.wait_staged(0)) << standby_.wait_failure();
  EXPECT_EQ(standby_.staged().back().wire_bytes, frames.bytes.size());
}

// A peer that asks and doesn't read its answers can be got rid of.
TEST_F(StandbyEngineDisksTest, AnswerThatNobodyReadsDoesNotHoldUpTheEnd) {
  standby_.engine->open_session(kTestToken, kGeneration, 1);
  TestConnection connection(*standby_.engine, 0, 1, kGeneration);
  const Bytes ask =
      Frames(0).frame(FrameType::disk_hashes, hashes_payload(0, 0, {Bytes(kDiskBlockBytes)})).bytes;
  std::thread asker([&] {
    for (int i = 0; i < 100000; ++i) connection.send(ask);
  });
  EXPECT_TRUE(wait_until([&] { return !connection.all_read(); }));
  standby_.engine->close_session();
  asker.join();
}

// --- what no honest primary sends ---

TEST_F(StandbyEngineDisksTest, RefusesDiskFramesThatDoNotBelongHere) {
  const Bytes good = payload_of({{0, 0, Bytes(8)}}), hashes = hashes_payload(0, 0, {Bytes(8)});
  const auto expect_refused = [&](const Frames& frames, const char* why) {
    TestConnection connection = begin();
    connection.send(frames.bytes);
    EXPECT_NE(standby_.wait_failure().find(why), std::string::npos)
        << standby_.wait_failure() << " / " << why;
    expect_untouched();
  };
  expect_refused(Frames(1).frame(FrameType::disk_hashes, hashes), "DISK_HASHES in epoch 1");
  expect_refused(Frames(1).frame(FrameType::disk_differs, Bytes(8)), "DISK_DIFFERS is the secondary's");
  expect_refused(Frames(1).disk(payload_of({{2, 0, Bytes(8)}})), "no such disk");
  expect_refused(Frames(1).disk(payload_of({{1, kOtherSize - 4, Bytes(8)}})), "past the end");
  expect_refused(Frames(1).disk(good + Bytes(8)), "disk entry at byte 32: its header is cut off");
  const auto expect_refused_at_first = [&](std::uint16_t lane, const Frames& frames, const char* why) {
    standby_.forget_events();
    standby_.engine->open_session(kTestToken, kGeneration, 2);
    TestConnection connection(*standby_.engine, lane, 2, kGeneration);
    connection.send(frames.bytes);
    EXPECT_NE(standby_.wait_failure().find(why), std::string::npos)
        << standby_.wait_failure() << " / " << why;
  };
  expect_refused_at_first(1, Frames(0).disk(good), "disk writes belong on connection 0");
  expect_refused_at_first(1, Frames(0).frame(FrameType::disk_hashes, hashes), "belongs on connection 0");
  expect_refused_at_first(0, Frames(0).frame(FrameType::disk_hashes, hashes_payload(2, 0, {Bytes(8)})),
                          "DISK_HASHES: there is no such disk");
  expect_refused_at_first(0, Frames(0).disk(payload_of({{0, kDiskSize - 4, Bytes(8)}})), "past the end");
}

TEST(StandbyEngineDisks, WithoutDisksEveryDiskFrameIsRefused) {
  const ModelledGuest guest({{kPages, false}});
  TestStandby standby(guest);
  standby.engine->open_session(kTestToken, kGeneration, 1);
  TestConnection connection(*standby.engine, 0, 1, kGeneration);
  connection.send(Frames(0).disk(payload_of({{0, 0, Bytes(8)}})).bytes);
  EXPECT_NE(standby.wait_failure().find("there is no such disk"), std::string::npos);
}

}  // namespace
}  // namespace colo
