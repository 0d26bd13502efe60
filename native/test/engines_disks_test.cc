// Both engines with disks, end to end: a guest whose writes pass the exports, qemu-nbd as the source that the
// copy reads from, losses at any moment.
#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <random>
#include <thread>

#include "nbd_harness.h"
#include "primary_harness.h"

namespace colo {
namespace {

using testing::Bytes;
using testing::capture;
using testing::connect;
using testing::kTestToken;
using testing::Listener;
using testing::ModelledGuest;
using testing::NbdWriter;
using testing::Outcome;
using testing::protect;
using testing::QemuNbd;
using testing::served_socket;
using testing::sync;
using testing::TestFolder;
using testing::TestStandby;
using testing::Tracker;
using testing::transmit;
using testing::vmstate_of;
using testing::wait_until;

Bytes content_of(const std::string& file) {
  const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  Bytes bytes(static_cast<std::size_t>(::lseek(fd.get(), 0, SEEK_END)));
  EXPECT_EQ(::pread(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return bytes;
}

::testing::AssertionResult same_disk(const Bytes& a, const Bytes& b) {
  if (a == b) return ::testing::AssertionSuccess();
  const auto first = std::mismatch(a.begin(), a.end(), b.begin()).first;
  return ::testing::AssertionFailure() << "byte " << first - a.begin() << " of " << a.size() << " differs";
}

// A disk of the guest: its file, qemu-nbd in front of it, its export, and the guest's way to write to both.
class GuestDisk {
 public:
  GuestDisk(const TestFolder& folder, const std::string& id, std::uint64_t size_bytes)
      : file(folder / (id + ".source")), size_bytes_(size_bytes), socket_(folder / (id + ".socket")) {
    fd_.reset(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    if (::ftruncate(fd_.get(), static_cast<off_t>(size_bytes)) != 0) std::abort();
    nbd_ = std::make_unique<QemuNbd>(file, socket_);
    DiskLogOptions options;
    options.id = id;
    options.size_bytes = size_bytes;
    options.limit_bytes = 8u << 20;
    options.pressure_bytes = 4u << 20;
    disk = std::make_shared<DiskExport>(
        options, DiskLog::Events{[] {}, [this](const std::string& reason) { failures.push_back(reason); }});
    start_mirror();
  }

  void start_mirror() {
    const std::lock_guard lock(mutex_);
    writer_ = std::make_unique<NbdWriter>(served_socket(*disk));
  }
  void lose_mirror() {
    const std::lock_guard lock(mutex_);
    writer_->cut();
    EXPECT_TRUE(
        wait_until([this] { return disk->log().stats().differing_blocks == disk_blocks(size_bytes_); }));
    writer_ = std::make_unique<NbdWriter>(served_socket(*disk));
  }
  void connect_source() { disk->connect_source(disk->begin_source(nbd_->connect(), "")); }

  // As QEMU does: the source first, then the mirror's target, one write after the other.
  void live(std::mt19937_64& random) {
    const std::lock_guard lock(mutex_);
    const std::uint64_t offset = random() % size_bytes_;
    const std::uint64_t longest = random() % 8 == 0 ? 300'000 : 8'000;
    const std::uint64_t length = std::min(random() % longest + 1, size_bytes_ - offset);
    const unsigned kind = random() % 6;
    Bytes data(length, std::byte(kind == 0 ? 0 : random()));
    ASSERT_EQ(::pwrite(fd_.get(), data.data(), length, static_cast<off_t>(offset)),
              static_cast<ssize_t>(length));
    if (kind == 0) {
      ASSERT_EQ(writer_->request(random() % 2 == 0 ? nbd::kWriteZeroes : nbd::kTrim, offset, length), 0u);
    } else {
      ASSERT_EQ(writer_->request(nbd::kWrite, offset, length, data), 0u);
    }
  }

  const std::string file;
  std::vector<std::string> failures;
  std::shared_ptr<DiskExport> disk;

 private:
  const std::uint64_t size_bytes_;
  const std::string socket_;
  UniqueFd fd_;
  std::unique_ptr<QemuNbd> nbd_;
  std::mutex mutex_;
  std::unique_ptr<NbdWriter> writer_;
};

std::string sync_disks(PrimaryEngine& engine, const std::vector<bool>& all_differ,
                       std::vector<SyncProgress>* progress = nullptr) {
  Outcome<> outcome;
  engine.sync_disks(
      all_differ, 0,
      [progress](SyncProgress now) {
        if (progress != nullptr) progress->push_back(now);
      },
      outcome.plain_done());
  return outcome.wait();
}

class EnginesWithDisks : public ::testing::Test {
 protected:
  EnginesWithDisks() {
    for (const auto& [id, size] : {std::pair{"disk0", (5u << 20) + 12800u}, std::pair{"disk1", 300u << 10}}) {
      disks_.push_back(std::make_unique<GuestDisk>(folder_, id, size));
      standby_files_.push_back(folder_ / (std::string(id) + ".standby"));
      const UniqueFd fd(::open(standby_files_.back().c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
      if (::ftruncate(fd.get(), static_cast<off_t>(size)) != 0) std::abort();
    }
    std::vector<StandbyDiskOptions> standby_disks;
    for (std::size_t i = 0; i < disks_.size(); ++i) {
      standby_disks.push_back({disks_[i]->disk->id(), ::open(standby_files_[i].c_str(), O_RDWR | O_CLOEXEC),
                               disks_[i]->disk->log().size_bytes()});
    }
    standby_ = std::make_unique<TestStandby>(standby_guest_, 0, std::vector<PreservedRange>{}, standby_disks);
    listener_ = std::make_unique<Listener>([this](UniqueFd fd, std::string preface) {
      standby_->engine->add_connection(fd.release(), preface);
    });
    PrimaryOptions options = testing::options_for(primary_guest_);
    for (const auto& disk : disks_) options.disks.push_back(disk->disk);
    engine_ = std::make_unique<PrimaryEngine>(options);
  }

  void live(int writes) {
    for (; writes > 0; --writes) disks_[random_() % disks_.size()]->live(random_);
  }
  std::vector<Bytes> sources() const {
    std::vector<Bytes> contents;
    for (const auto& disk : disks_) contents.push_back(content_of(disk->file));
    return contents;
  }
  ::testing::AssertionResult standby_is(const std::vector<Bytes>& expected) const {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (auto same = same_disk(content_of(standby_files_[i]), expected[i]); !same)
        return same << ", disk " << i;
    }
    return ::testing::AssertionSuccess();
  }

  // A session up to the end of epoch 0, the guest writing all the time.
  void begin(const std::vector<bool>& all_differ, unsigned connections = 2) {
    standby_->forget_events();
    standby_->engine->open_session(kTestToken, testing::kGeneration, connections);
    ASSERT_EQ(connect(*engine_, listener_->port, connections), "");
    for (const auto& disk : disks_) disk->connect_source();
    std::atomic<bool> over = false;
    std::thread guest([&, seed = random_()] {
      std::mt19937_64 random(seed);
      while (!over) disks_[random() % disks_.size()]->live(random);
    });
    const std::string copied = sync_disks(*engine_, all_differ, &progress_);
    const std::string synced = copied.empty() ? sync(*engine_) : "";
    over = true;
    guest.join();
    ASSERT_EQ(copied, "");
    ASSERT_EQ(synced, "");
    ASSERT_TRUE(standby_->wait_staged(0)) << standby_->wait_failure();
  }

  void checkpoint(std::uint64_t epoch) {
    CaptureResult captured;
    ASSERT_EQ(capture(*engine_, epoch, &captured), "");
    const std::vector<Bytes> at_capture = sources();
    live(static_cast<int>(random_() % 4));  // it runs on while the checkpoint is sent
    standby_->engine->open_epoch(epoch);
    TransmitResult sent;
    ASSERT_EQ(transmit(*engine_, epoch, vmstate_of(epoch, 500), &sent), "");
    ASSERT_TRUE(standby_->wait_staged(epoch)) << standby_->wait_failure();
    EXPECT_EQ(standby_->staged().back().wire_bytes, sent.wire_bytes);
    ASSERT_EQ(standby_->commit(epoch), "");
    ASSERT_TRUE(standby_is(at_capture)) << "epoch " << epoch;
  }

  void end() {
    engine_->disconnect();
    standby_->engine->close_session();
    for (const auto& disk : disks_) disk->disk->close_source();
  }

  std::uint64_t seed_ = std::random_device{}();
  ::testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
  std::mt19937_64 random_{seed_};
  TestFolder folder_;
  ModelledGuest primary_guest_{{{300, true}}}, standby_guest_{{{300, true}}};
  std::vector<std::unique_ptr<GuestDisk>> disks_;
  std::vector<std::string> standby_files_;
  std::vector<SyncProgress> progress_;
  std::unique_ptr<TestStandby> standby_;
  std::unique_ptr<Listener> listener_;
  std::unique_ptr<PrimaryEngine> engine_;
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
    const std::vector<Bytes> committed = {content_of(standby_files_[0]), content_of(standby_files_[1])};
    live(10);
    ASSERT_EQ(capture(*engine_, epoch), "");
    standby_->engine->open_epoch(epoch);
    const bool sent = random_() % 2 == 0;
    if (sent) (void)transmit(*engine_, epoch, vmstate_of(epoch, 500));
    end();
    if (!sent) engine_->abandon();
    EXPECT_TRUE(standby_is(committed));
    if (session == 3) disks_[0]->lose_mirror();
    live(20);
  }
}

}  // namespace
}  // namespace colo
