// The two engines around disks of a guest, for tests of the whole path.
#pragma once

#include <atomic>
#include <mutex>
#include <random>
#include <thread>

#include "nbd_harness.h"
#include "primary_harness.h"

namespace colo::testing {

inline Bytes content_of(const std::string& file) {
  const UniqueFd fd(::open(file.c_str(), O_RDONLY | O_CLOEXEC));
  Bytes bytes(static_cast<std::size_t>(::lseek(fd.get(), 0, SEEK_END)));
  EXPECT_EQ(::pread(fd.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  return bytes;
}

inline ::testing::AssertionResult same_disk(const Bytes& a, const Bytes& b) {
  if (a == b) return ::testing::AssertionSuccess();
  const auto first = std::mismatch(a.begin(), a.end(), b.begin()).first;
  return ::testing::AssertionFailure() << "byte " << first - a.begin() << " of " << a.size() << " differs";
}

inline DiskLogOptions log_options(const std::string& id, std::uint64_t size_bytes) {
  DiskLogOptions options;
  options.id = id;
  options.size_bytes = size_bytes;
  options.limit_bytes = 8u << 20;
  options.pressure_bytes = 4u << 20;
  options.stall_ms = 5;
  return options;
}

// A disk of the guest: its file, the server that it is read from, its export, and the guest's way to write to
// both.
class GuestDisk {
 public:
  GuestDisk(const TestFolder& folder, const std::string& id, std::uint64_t size_bytes)
      : file(folder / (id + ".source")),
        size_bytes_(size_bytes),
        fd_(::open(file.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
    if (::ftruncate(fd_.get(), static_cast<off_t>(size_bytes)) != 0) std::abort();
    disk = std::make_shared<DiskExport>(log_options(id, size_bytes),
                                        DiskLog::Events{[] {},
                                                        [this](const std::string& reason) {
                                                          const std::lock_guard lock(failures_mutex_);
                                                          failures_.push_back(reason);
                                                        }});
  }
  virtual ~GuestDisk() = default;

  virtual void connect_source() = 0;
  virtual void live(std::mt19937_64& random) = 0;

  const std::string file;
  std::shared_ptr<DiskExport> disk;

  std::vector<std::string> failures() {
    const std::lock_guard lock(failures_mutex_);
    return failures_;
  }

 protected:
  const std::uint64_t size_bytes_;
  const UniqueFd fd_;

 private:
  std::mutex failures_mutex_;
  std::vector<std::string> failures_;
};

inline std::string sync_disks(PrimaryEngine& engine, const std::vector<bool>& all_differ,
                              std::vector<SyncProgress>* progress = nullptr,
                              std::uint64_t bytes_per_second = 0) {
  Outcome<> outcome;
  engine.sync_disks(
      all_differ, bytes_per_second,
      [progress](SyncProgress now) {
        if (progress != nullptr) progress->push_back(now);
      },
      outcome.plain_done());
  return outcome.wait();
}

// The two engines around any disks.
class WorldWithDisks {
 public:
  void open(std::vector<GuestDisk*> disks) {
    disks_ = std::move(disks);
    for (const GuestDisk* disk : disks_) {
      const std::uint64_t size = disk->disk->log().size_bytes();
      standby_files_.push_back(folder_ / (disk->disk->id() + ".standby"));
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
      const std::lock_guard lock(standby_mutex_);
      ++accepted_;
      try {
        standby_->engine->add_connection(Connection(std::move(fd)), preface);
      } catch (const Error& error) {
        EXPECT_STREQ(error.code(), "ERR_COLO_PEER");  // its session has ended meanwhile
      }
    });
    PrimaryOptions options = options_for(primary_guest_);
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
  std::vector<Bytes> standbys() const {
    std::vector<Bytes> contents;
    for (const std::string& file : standby_files_) contents.push_back(content_of(file));
    return contents;
  }
  ::testing::AssertionResult standby_is(const std::vector<Bytes>& expected) const {
    for (std::size_t i = 0; i < expected.size(); ++i) {
      if (auto same = same_disk(content_of(standby_files_[i]), expected[i]); !same)
        return same << ", disk " << i;
    }
    return ::testing::AssertionSuccess();
  }

  std::string connect_again(unsigned connections = 2) {
    {
      const std::lock_guard lock(standby_mutex_);
      standby_->engine->close_session();
      standby_->forget_events();
      standby_->engine->open_session(kTestToken, kGeneration, connections);
    }
    const unsigned before = accepted();
    const std::string connected = connect(*engine_, listener_->port, connections);
    // All sessions here have one token: a connection that came late would be taken for one of the next.
    if (connected.empty()) {
      EXPECT_TRUE(wait_until([&] { return accepted() == before + connections; }));
    }
    return connected;
  }
  unsigned accepted() const {
    const std::lock_guard lock(standby_mutex_);
    return accepted_;
  }

  // A session up to the end of epoch 0.
  void begin_quietly(const std::vector<bool>& all_differ) {
    ASSERT_EQ(connect_again(), "");
    for (GuestDisk* disk : disks_) disk->connect_source();
    ASSERT_EQ(sync_disks(*engine_, all_differ, &progress_), "");
    ASSERT_EQ(sync(*engine_), "");
    ASSERT_TRUE(standby_->wait_staged(0)) << standby_->wait_failure();
  }

  // The same while the guest writes all the time.
  void begin(const std::vector<bool>& all_differ) {
    ASSERT_EQ(connect_again(), "");
    for (GuestDisk* disk : disks_) disk->connect_source();
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

  // The guest runs on while the checkpoint is sent.
  void checkpoint(std::uint64_t epoch, int writes_meanwhile = 2) {
    CaptureResult captured;
    ASSERT_EQ(capture(*engine_, epoch, &captured), "");
    const std::vector<Bytes> at_capture = sources();
    live(writes_meanwhile);
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
    {
      const std::lock_guard lock(standby_mutex_);
      standby_->engine->close_session();
    }
    for (const auto& disk : disks_) disk->disk->close_source();
  }

  std::uint64_t seed_ = std::random_device{}();
  ::testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
  std::mt19937_64 random_{seed_};
  TestFolder folder_;
  ModelledGuest primary_guest_{{{300, true}}}, standby_guest_{{{300, true}}};
  std::vector<GuestDisk*> disks_;
  std::vector<std::string> standby_files_;
  std::vector<SyncProgress> progress_;
  mutable std::mutex standby_mutex_;  // its sessions belong to one thread at a time
  unsigned accepted_ = 0;             // connections, guarded by standby_mutex_
  std::unique_ptr<TestStandby> standby_;
  std::unique_ptr<Listener> listener_;
  std::unique_ptr<PrimaryEngine> engine_;
};

}  // namespace colo::testing
