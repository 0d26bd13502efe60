#include "../core/disk_log.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <deque>
#include <random>
#include <shared_mutex>
#include <thread>

#include "../core/error.h"
#include "child_process.h"

namespace colo {
namespace {

using testing::wait_until;
using Bytes = std::vector<std::byte>;

constexpr std::uint64_t kSize = 12 * kDiskBlockBytes + 5000;  // the last block is shorter

DiskLogOptions options_of(std::uint64_t size_bytes = kSize) {
  DiskLogOptions options;
  options.id = "disk0";
  options.size_bytes = size_bytes;
  options.stall_ms = 1;
  return options;
}

// As the standby does.
void apply(Bytes& image, const DiskWrite& write) {
  if (write.data == nullptr) {
    std::memset(image.data() + write.offset, 0, write.length);
  } else {
    std::memcpy(image.data() + write.offset, write.data, write.length);
  }
}
void apply(Bytes& image, const DiskWrites& writes) {
  for (const DiskWrite& write : writes.entries()) apply(image, write);
}

// What happens to a write on its way: QEMU writes the source first.
void write(DiskLog& log, Bytes& source, std::uint64_t offset, std::uint64_t length, std::byte value) {
  std::memset(source.data() + offset, static_cast<int>(value), length);
  if (value == std::byte{0}) return log.append_zeros(offset, length);
  WriteRoom room = log.reserve(length);
  for (const auto& piece : room.pieces) {
    if (!piece.bytes.empty()) std::memset(piece.bytes.data(), static_cast<int>(value), piece.bytes.size());
  }
  log.append(std::move(room), offset);
}

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
    failures_ = 0;
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
  DiskLog log_{options_of(), {[] {}, [this](const std::string&) { ++failures_; }}};
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

// --- what each call does
// ----------------------------------------------------------------------------------------------------------

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
    DiskLogOptions options = options_of();
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

// --- many threads
// -----------------------------------------------------------------------------------------------------------------

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
  DiskLogOptions options = options_of();
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
