// The disk log against byte arrays: what the wire makes of the standby's disk is the source, at every commit.
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <random>
#include <shared_mutex>
#include <thread>

#include "../core/disk_log.h"
#include "../core/error.h"
#include "disk_log_harness.h"

namespace colo {
namespace {

using testing::apply;
using testing::disk_log_options;
using testing::write;
using Bytes = testing::DiskImage;

constexpr std::uint64_t kSize = testing::kLogSize;

// A disk, its log, and the standby's disk: driven at random, and compared byte for byte where the two must be
// equal.
class World {
 public:
  explicit World(std::uint64_t seed) : random_(seed) {}

  void run(int steps) {
    for (; steps > 0 && !::testing::Test::HasFatalFailure(); --steps) step();
  }
  std::uint64_t commits() const { return commits_; }

 private:
  enum class Phase { alone, copying, protected_, failed };

  void step() {
    switch (random_() % 6) {
      case 0:
      case 1:
      case 2:
        return live();
      case 3:
        if (random_() % 25 == 0) return lose();
        break;
      default:
        break;
    }
    switch (phase_) {
      case Phase::alone:
        EXPECT_EQ(log_.stats().logged_bytes, 0u);
        if (random_() % 3 == 0) begin();
        return;
      case Phase::copying:
        return copy();
      case Phase::protected_:
        return checkpoint();
      case Phase::failed:
        return expect_failed();
    }
  }

  void live() {
    const std::uint64_t offset = random_() % kSize;
    const std::uint64_t longest = random_() % 4 == 0 ? 3 * kDiskBlockBytes : 6000;
    const std::uint64_t length = std::min<std::uint64_t>(random_() % longest + 1, kSize - offset);
    write(log_, source_, offset, length, std::byte(random_() % 4));
  }

  void begin() {
    const bool all_differ = random_() % 5 == 0;
    if (all_differ) {  // another disk takes the standby's place
      for (std::byte& byte : standby_) byte = std::byte(random_() % 4);
    }
    log_.begin_session(all_differ);
    failures_ = 0;
    phase_ = Phase::copying;
    epoch_ = 0;
    confirmed_ = 0;
  }

  // One window, with writes at any moment.
  void copy() {
    const BlockRun run = log_.next_differing(random_() % 5 + 1);
    live_sometimes();
    apply(standby_, *log_.take_first_copy_writes());
    if (run.count == 0) {
      phase_ = Phase::protected_;
      return;
    }
    live_sometimes();
    const std::uint64_t offset = run.first * kDiskBlockBytes;
    const std::uint64_t length = std::min(run.count * kDiskBlockBytes, kSize - offset);
    const Bytes content(source_.begin() + static_cast<std::ptrdiff_t>(offset),
                        source_.begin() + static_cast<std::ptrdiff_t>(offset + length));
    live_sometimes();
    apply(standby_, {offset, length, content.data()});
  }

  void checkpoint() {
    if (random_() % 4 == 0) return confirm();
    log_.seal(epoch_ + 1);
    const Bytes sealed = source_;
    live_sometimes();
    if (random_() % 4 == 0) return log_.unseal();
    ++epoch_;
    const auto writes = log_.take_sealed(epoch_);
    live_sometimes();
    // The session may be lost before the standby has all of it; then it applies nothing.
    if (random_() % 10 == 0) return lose();
    apply(standby_, *writes);
    ASSERT_TRUE(standby_ == sealed) << "epoch " << epoch_;
    ++commits_;
  }

  void confirm() {
    confirmed_ += confirmed_ < epoch_;
    log_.confirm(confirmed_);
    log_.confirm(0);
  }

  void expect_failed() {
    EXPECT_EQ(failures_, 1);
    EXPECT_THROW(log_.next_differing(1), Error);
    EXPECT_THROW(log_.take_first_copy_writes(), Error);
    EXPECT_EQ(log_.seal(1), 0u);
    EXPECT_THROW(log_.take_sealed(1), Error);
    log_.unseal();
    end();
  }

  void lose() {
    if (random_() % 3 == 0) {
      const bool in_session = phase_ == Phase::copying || phase_ == Phase::protected_;
      // Writes that the log never saw.
      std::memset(source_.data() + random_() % (kSize - 100), 1, 100);
      log_.lose("test");
      EXPECT_EQ(log_.stats().differing_blocks, disk_blocks(kSize));
      if (in_session) phase_ = Phase::failed;
      return;
    }
    end();
  }

  void end() {
    log_.end_session();
    phase_ = Phase::alone;
  }

  void live_sometimes() {
    while (random_() % 3 == 0) live();
  }

  std::mt19937_64 random_;
  Bytes source_ = Bytes(kSize), standby_ = Bytes(kSize, std::byte{9});
  int failures_ = 0;
  DiskLog log_{disk_log_options(), {[] {}, [this](const std::string&) { ++failures_; }}};
  Phase phase_ = Phase::alone;
  std::uint64_t epoch_ = 0, confirmed_ = 0, commits_ = 0;
};

TEST(DiskLog, StandbyIsByteForByteTheSourceAtEveryCommit) {
  const unsigned first = std::random_device{}();
  std::uint64_t commits = 0;
  for (unsigned seed = first; seed != first + 60; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    World world(seed);
    world.run(250);
    commits += world.commits();
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(commits, 100u);
}

// Guest threads that write each its own part of the disk, a session that copies and checkpoints, and losses
// from a fourth thread.
TEST(DiskLog, HoldsWithThreads) {
  constexpr unsigned kWriters = 3, kCommits = 150;
  constexpr std::uint64_t kPart = kSize / kWriters;
  std::random_device seeds;
  Bytes source(kSize), standby(kSize);
  std::mutex source_mutex;
  std::shared_mutex running;  // a writer holds it while its write is in flight; alone: the VM stands
  std::atomic<bool> over = false, stopping = false;
  DiskLogOptions options = disk_log_options();
  options.limit_bytes = 2u << 20;
  options.pressure_bytes = 1u << 20;
  DiskLog log(options, {[] {}, [](const std::string&) {}});

  std::vector<std::thread> threads;
  for (unsigned writer = 0; writer < kWriters; ++writer) {
    threads.emplace_back([&, writer, seed = seeds()] {
      std::mt19937_64 random(seed);
      while (!over) {
        while (stopping && !over) std::this_thread::yield();  // the lock itself prefers readers
        const std::shared_lock in_flight(running);
        const std::uint64_t offset = random() % kPart,
                            length = random() % std::min<std::uint64_t>(kPart - offset, 9000) + 1;
        const std::uint64_t at = writer * kPart + offset;
        const auto value = std::byte(random());
        {
          const std::lock_guard lock(source_mutex);
          std::memset(source.data() + at, static_cast<int>(value), length);
        }
        WriteRoom room = log.reserve(length);
        for (const auto& piece : room.pieces) std::fill(piece.bytes.begin(), piece.bytes.end(), value);
        log.append(std::move(room), at);
      }
    });
  }
  threads.emplace_back([&, seed = seeds()] {
    std::mt19937_64 random(seed);
    while (!over) {
      std::this_thread::yield();
      if (random() % 20000 == 0) log.lose("test");
      if (random() % 100 == 0) log.hurry();
      (void)log.stats();
    }
  });

  unsigned commits = 0, sessions = 0;
  std::mt19937_64 random(seeds());
  while (commits < kCommits && !HasFailure()) {
    ++sessions;
    log.begin_session(false);
    try {
      for (;;) {
        const BlockRun run = log.next_differing(3);
        apply(standby, *log.take_first_copy_writes());
        if (run.count == 0) break;
        const std::uint64_t offset = run.first * kDiskBlockBytes;
        const std::uint64_t length = std::min(run.count * kDiskBlockBytes, kSize - offset);
        Bytes content;
        {
          const std::lock_guard lock(source_mutex);
          content.assign(source.begin() + static_cast<std::ptrdiff_t>(offset),
                         source.begin() + static_cast<std::ptrdiff_t>(offset + length));
        }
        apply(standby, {offset, length, content.data()});
      }
      for (std::uint64_t epoch = 1; random() % 20 != 0; ++epoch) {
        Bytes sealed;
        {
          stopping = true;
          log.hurry();
          const std::unique_lock stopped(running);
          log.seal(epoch);
          sealed = source;
          stopping = false;
        }
        if (random() % 5 == 0) {
          log.unseal();
          --epoch;
          continue;
        }
        const auto writes = log.take_sealed(epoch);
        if (random() % 20 == 0) break;  // and lost with it
        apply(standby, *writes);
        EXPECT_TRUE(standby == sealed) << "epoch " << epoch;
        ++commits;
        if (random() % 3 != 0) log.confirm(epoch);
      }
    } catch (const Error& error) {
      EXPECT_STREQ(error.code(), "ERR_COLO_DISK");
    }
    log.end_session();
  }
  EXPECT_GT(sessions, 1u);
  over = true;
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace colo
