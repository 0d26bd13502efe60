// Both engines with disks, end to end: a guest whose writes pass the exports, qemu-nbd as the source that the
// copy reads from, losses at any moment.
#include <gtest/gtest.h>
#include <signal.h>

#include "disks_harness.h"

namespace colo {
namespace {

using testing::Bytes;
using testing::capture;
using testing::connect;
using testing::content_of;
using testing::GuestDisk;
using testing::kTestToken;
using testing::NbdWriter;
using testing::Outcome;
using testing::QemuNbd;
using testing::served_socket;
using testing::sync_disks;
using testing::TestFolder;
using testing::transmit;
using testing::vmstate_of;
using testing::wait_until;
using testing::WorldWithDisks;

// Written by the test, read by way of qemu-nbd.
class TestedDisk : public GuestDisk {
 public:
  TestedDisk(const TestFolder& folder, const std::string& id, std::uint64_t size_bytes)
      : GuestDisk(folder, id, size_bytes), nbd(file, folder / (id + ".socket")) {
    start_mirror();
  }
  ~TestedDisk() override { disk->close(); }

  void start_mirror() {
    const std::lock_guard lock(mutex_);
    writer_ = std::make_unique<NbdWriter>(served_socket(*disk));
  }
  // The guest writes on: to the source only.
  void lose_mirror() {
    const std::lock_guard lock(mutex_);
    writer_.reset();
    EXPECT_TRUE(
        wait_until([this] { return disk->log().stats().differing_blocks == disk_blocks(size_bytes_); }));
  }
  void connect_source() override { disk->connect_source(disk->begin_source(nbd.connect(), "")); }

  // As QEMU does: the source first, then the mirror's target, one write after the other.
  void write(std::uint64_t offset, const Bytes& data) {
    const std::lock_guard lock(mutex_);
    ASSERT_EQ(::pwrite(fd_.get(), data.data(), data.size(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(data.size()));
    if (writer_) {
      ASSERT_EQ(writer_->request(nbd::kWrite, offset, data.size(), data), 0u);
    }
  }
  void write_zeros(std::uint16_t command, std::uint64_t offset, std::uint64_t length) {
    const std::lock_guard lock(mutex_);
    const Bytes zeros(length);
    ASSERT_EQ(::pwrite(fd_.get(), zeros.data(), length, static_cast<off_t>(offset)),
              static_cast<ssize_t>(length));
    if (writer_) {
      ASSERT_EQ(writer_->request(command, offset, length), 0u);
    }
  }
  void live(std::mt19937_64& random) override {
    const std::uint64_t offset = random() % size_bytes_;
    const std::uint64_t longest = random() % 8 == 0 ? 300'000 : 8'000;
    const std::uint64_t length = std::min(random() % longest + 1, size_bytes_ - offset);
    if (random() % 6 == 0)
      return write_zeros(random() % 2 == 0 ? nbd::kWriteZeroes : nbd::kTrim, offset, length);
    write(offset, Bytes(length, std::byte(random())));
  }

  QemuNbd nbd;

 private:
  std::mutex mutex_;
  std::unique_ptr<NbdWriter> writer_;
};

class EnginesWithDisks : public ::testing::Test, protected WorldWithDisks {
 protected:
  EnginesWithDisks() { open({&first_, &second_}); }

  TestedDisk first_{folder_, "disk0", (5u << 20) + 12800u}, second_{folder_, "disk1", 300u << 10};
};

TEST_F(EnginesWithDisks, StandbysDisksAreExactlyThoseOfTheLastCommittedCheckpoint) {
  live(200);
  for (int session = 0; session < 6; ++session) {
    begin({session == 0, session == 0});
    std::uint64_t epoch = 1;
    for (; epoch <= 8 && !HasFatalFailure(); ++epoch) {
      live(static_cast<int>(random_() % 30));
      if (random_() % 4 == 0) {
        // Abandoned: its writes go with the next one.
        ASSERT_EQ(capture(*engine_, epoch), "");
        engine_->abandon();
        live(3);
      }
      checkpoint(epoch);
      if (random_() % 2 == 0) engine_->confirm(epoch);
    }
    if (HasFatalFailure()) return;
    // The standby is lost while a checkpoint is under way.
    const std::vector<Bytes> committed = standbys();
    live(10);
    ASSERT_EQ(capture(*engine_, epoch), "");
    standby_->engine->open_epoch(epoch);
    const bool sent = random_() % 2 == 0;
    if (sent) (void)transmit(*engine_, epoch, vmstate_of(epoch, 500));
    end();
    if (!sent) engine_->abandon();
    EXPECT_TRUE(standby_is(committed));
    if (session == 3) first_.lose_mirror();
    live(20);
    if (session == 3) first_.start_mirror();
  }
}

// INVARIANT 3: a block that was written when nobody looked differs, whatever the standby had.
TEST_F(EnginesWithDisks, AMirrorLostInASessionIsMadeUpForInTheNext) {
  live(50);
  begin({true, true});
  checkpoint(1);
  const std::vector<Bytes> committed = standbys();
  live(5);
  ASSERT_EQ(capture(*engine_, 2), "");
  first_.lose_mirror();
  live(20);
  EXPECT_EQ(transmit(*engine_, 2, vmstate_of(2, 500)), "ERR_COLO_DISK");
  EXPECT_EQ(first_.failures().size(), 1u);
  EXPECT_TRUE(standby_is(committed));
  end();
  ASSERT_EQ(connect_again(), "");
  EXPECT_EQ(sync_disks(*engine_, {false, false}), "ERR_COLO_DISK");  // the mirror is still missing
  end();
  first_.start_mirror();
  begin({false, false});
  checkpoint(1);
}

TEST_F(EnginesWithDisks, AMirrorLostInTheCopyEndsIt) {
  live(200);
  ASSERT_EQ(connect_again(), "");
  first_.connect_source();
  second_.connect_source();
  ::kill(first_.nbd.pid(), SIGSTOP);
  Outcome<> copied;
  engine_->sync_disks(
      {true, true}, 0, [](SyncProgress) {}, copied.plain_done());
  ASSERT_TRUE(wait_until([this] { return first_.disk->log().stats().differing_blocks < 80; }));
  first_.lose_mirror();
  ::kill(first_.nbd.pid(), SIGCONT);
  EXPECT_EQ(copied.wait(), "ERR_COLO_DISK");
  EXPECT_NE(copied.what().find("the mirror of disk 'disk0' has ended"), std::string::npos) << copied.what();
}

TEST_F(EnginesWithDisks, BlocksThatAreEqualDoNotGoAcross) {
  for (int i = 0; i < 80; ++i)
    first_.write(static_cast<std::uint64_t>(i) * kDiskBlockBytes, Bytes(kDiskBlockBytes, std::byte(i + 1)));
  begin_quietly({true, true});
  EXPECT_GT(standby_->staged().back().disk_bytes, 80 * kDiskBlockBytes);
  checkpoint(1, 0);
  end();
  // Another process of the agent knows nothing of the standby's disk: all is asked about, nothing is sent.
  progress_.clear();
  begin_quietly({true, true});
  EXPECT_EQ(standby_->staged().back().disk_bytes, 0u);
  EXPECT_EQ(progress_.back().done_bytes, progress_.back().total_bytes);
  EXPECT_GE(progress_.back().total_bytes, 85 * kDiskBlockBytes);
  checkpoint(1, 0);
  engine_->confirm(1);
  end();
  // A standby that was away: only what was written is asked about.
  first_.write(7 * kDiskBlockBytes + 5, Bytes(10, std::byte{0xaa}));
  first_.write(60 * kDiskBlockBytes, Bytes(kDiskBlockBytes, std::byte{61}));  // as it was
  progress_.clear();
  begin_quietly({false, false});
  EXPECT_EQ(progress_.back().total_bytes, 2 * kDiskBlockBytes);
  EXPECT_EQ(standby_->staged().back().disk_bytes, sizeof(DiskEntryHeader) + kDiskBlockBytes);
  checkpoint(1, 0);
}

TEST_F(EnginesWithDisks, ZerosGoAsZerosAndHolesAreNotRead) {
  first_.write(0, Bytes(kDiskBlockBytes, std::byte{0}));
  for (const std::string& file : standby_files_) {
    const UniqueFd fd(::open(file.c_str(), O_WRONLY | O_CLOEXEC));
    const Bytes old(200'000, std::byte{3});
    ASSERT_EQ(::pwrite(fd.get(), old.data(), old.size(), 0), static_cast<ssize_t>(old.size()));
  }
  begin_quietly({true, true});
  EXPECT_LE(standby_->staged().back().disk_bytes, 10 * sizeof(DiskEntryHeader));
  checkpoint(1);
}

TEST_F(EnginesWithDisks, ASlowStandbyIsGivenUpAndTheGuestGoesOn) {
  begin({true, true});
  checkpoint(1);
  const std::vector<Bytes> committed = standbys();
  // Twice the limit, with nobody sending.
  for (int i = 0; first_.failures().empty(); ++i) {
    ASSERT_LT(i, 200);
    first_.write(static_cast<std::uint64_t>(i % 40) * kDiskBlockBytes * 2, Bytes(100'000, std::byte(i)));
  }
  EXPECT_EQ(first_.disk->log().stats().logged_bytes, 0u);
  ASSERT_EQ(capture(*engine_, 2), "");
  EXPECT_EQ(transmit(*engine_, 2, vmstate_of(2, 500)), "ERR_COLO_DISK");
  EXPECT_TRUE(standby_is(committed));
  end();
  begin({false, false});
  checkpoint(1);
}

// Whatever a job is waiting for, disconnect() and close() end it.
TEST_F(EnginesWithDisks, DisconnectEndsACopyThatWaitsForItsSource) {
  live(50);
  for (const bool closing : {false, true}) {
    ASSERT_EQ(connect_again(), "");
    first_.connect_source();
    second_.connect_source();
    ::kill(first_.nbd.pid(), SIGSTOP);
    Outcome<> copied;
    engine_->sync_disks(
        {true, true}, 0, [](SyncProgress) {}, copied.plain_done());
    ASSERT_TRUE(wait_until([this] { return first_.disk->log().stats().differing_blocks < 80; }));
    if (closing) {
      engine_->close();
    } else {
      engine_->disconnect();
    }
    EXPECT_EQ(copied.wait(), closing ? "ERR_COLO_CLOSED" : "ERR_COLO_LINK");
    ::kill(first_.nbd.pid(), SIGCONT);
    EXPECT_EQ(first_.disk->log().stats().differing_blocks, disk_blocks(first_.disk->log().size_bytes()));
    EXPECT_THROW(first_.disk->log().require_session(), Error);
  }
}

TEST_F(EnginesWithDisks, CopyKeepsToItsRate) {
  for (int i = 0; i < 40; ++i)
    first_.write(static_cast<std::uint64_t>(i) * kDiskBlockBytes, Bytes(kDiskBlockBytes, std::byte(i + 1)));
  ASSERT_EQ(connect_again(), "");
  first_.connect_source();
  second_.connect_source();
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_EQ(sync_disks(*engine_, {true, true}, nullptr, 10u << 20), "");
  // 2.5 MiB at ten a second can't be sooner; how much later depends on the machine.
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(250));
}

TEST_F(EnginesWithDisks, NothingIsSentWithoutTheFirstCopyOfDisks) {
  ASSERT_EQ(connect_again(), "");
  EXPECT_EQ(testing::sync(*engine_), "ERR_COLO_LINK");
  ASSERT_EQ(capture(*engine_, 1), "");
  EXPECT_EQ(transmit(*engine_, 1, vmstate_of(1, 500)), "ERR_COLO_LINK");
}

// INVARIANT 3: what an epoch that broke off had taken from the log differs again, before anybody ends the
// session.
TEST_F(EnginesWithDisks, WritesOfAnEpochThatBrokeOffDifferAgain) {
  begin_quietly({true, true});
  checkpoint(1, 0);
  engine_->confirm(1);
  const auto differing = [this] { return first_.disk->log().stats().differing_blocks; };
  ASSERT_EQ(differing(), 0u);
  first_.write(0, Bytes(4096, std::byte{0x11}));
  standby_->engine->close_session();
  std::string failure;  // the first bytes still find room in the socket
  for (std::uint64_t epoch = 2; failure.empty() && epoch < 1000; ++epoch) {
    ASSERT_EQ(capture(*engine_, epoch), "");
    failure = transmit(*engine_, epoch, vmstate_of(epoch, 500));
  }
  EXPECT_EQ(failure, "ERR_COLO_LINK");
  EXPECT_EQ(differing(), 1u);
}

// A checkpoint whose device state is missing was not sent: its writes go with the next one.
TEST_F(EnginesWithDisks, WritesOfAFailedTransmitGoWithTheNext) {
  begin({true, true});
  for (std::uint64_t epoch = 1; epoch <= 4; ++epoch) {
    live(10);
    ASSERT_EQ(capture(*engine_, epoch), "");
    ASSERT_EQ(transmit(*engine_, epoch, ""), "ERR_COLO_VMSTATE");
    live(3);
    checkpoint(epoch);
  }
}

}  // namespace
}  // namespace colo
