// An agent that dies while it stages or commits disk writes: what it leaves on the disks.
#include <gtest/gtest.h>
#include <signal.h>

#include <atomic>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <utility>

#include "../core/standby_engine.h"
#include "disk_frames.h"
#include "engine_harness.h"
#include "test_disks.h"

namespace colo {
namespace {

using testing::Bytes;
using testing::ChildProcess;
using testing::contents_of;
using testing::epoch_bytes;
using testing::Frames;
using testing::kDiskSize;
using testing::kGeneration;
using testing::kOtherSize;
using testing::kTestToken;
using testing::ModelledGuest;
using testing::payload_of;
using testing::ram_of;
using testing::same_ram;
using testing::TestConnection;
using testing::TestStandby;
using testing::unnamed_file;
using testing::Write;
using testing::writes_of;

constexpr std::uint64_t kEpochs = 3;
using Images = std::vector<Bytes>;

// Kills its own process at the n-th call that could change something, in the middle of a write.
class DeadlyDiskCalls : public DiskCalls {
 public:
  explicit DeadlyDiskCalls(unsigned calls) : calls_left_(calls) {}

  ssize_t pwrite(int fd, const void* from, std::size_t length, off_t offset) override {
    if (calls_left_-- == 0) {
      DiskCalls::pwrite(fd, from, length / 2, offset);
      ::kill(::getpid(), SIGKILL);
    }
    return DiskCalls::pwrite(fd, from, length, offset);
  }
  int fallocate(int fd, int mode, off_t offset, off_t length) override {
    if (calls_left_-- == 0) ::kill(::getpid(), SIGKILL);
    return DiskCalls::fallocate(fd, mode, offset, length);
  }

 private:
  std::atomic<unsigned> calls_left_;
};

// What the agent has begun, as it says before and after.
struct Step {
  enum Kind : std::uint64_t { none, staging, committing, committed } kind = none;
  std::uint64_t epoch = 0;
};

class StandbyCrashTest : public ::testing::Test {
 protected:
  void SetUp() override {
    before_ = {Bytes(kDiskSize, std::byte{0xee}), Bytes(kOtherSize, std::byte{0xee})};
    restore(before_);
    ram_ = ram_of(guest_);
  }

  void restore(const Images& images) {
    ASSERT_EQ(::pwrite(file_.get(), images[0].data(), kDiskSize, 0), static_cast<ssize_t>(kDiskSize));
    ASSERT_EQ(::pwrite(other_.get(), images[1].data(), kOtherSize, 0), static_cast<ssize_t>(kOtherSize));
  }
  Images images() const {
    return {contents_of(file_.get(), kDiskSize), contents_of(other_.get(), kOtherSize)};
  }

  // What every agent does here: an empty first copy, then `epochs` one after the other.
  int run_agent(DiskCalls& calls, std::uint64_t epochs, const std::function<void(Step)>& about_to) const {
    TestStandby standby(guest_, 0, {},
                        {{"sda", file_.get(), kDiskSize, &calls}, {"sdb", other_.get(), kOtherSize, &calls}});
    standby.engine->open_session(kTestToken, kGeneration, 1);
    TestConnection connection(*standby.engine, 0, 1, kGeneration);
    connection.send(Frames(0).end().bytes);
    if (!standby.wait_staged(0)) return 1;
    for (std::uint64_t epoch = 1; epoch <= epochs; ++epoch) {
      about_to({Step::staging, epoch});
      standby.engine->open_epoch(epoch);
      connection.send(epoch_bytes(epoch));
      if (!standby.wait_staged(epoch)) return 2;
      about_to({Step::committing, epoch});
      if (!standby.commit(epoch).empty()) return 3;
      about_to({Step::committed, epoch});
    }
    return 0;
  }

  int run_agent_that_tells(DiskCalls& calls, std::uint64_t epochs, int socket) const {
    return run_agent(calls, epochs, [socket](Step step) {
      if (::send(socket, &step, sizeof step, MSG_NOSIGNAL) != sizeof step) ::_exit(4);
    });
  }

  // What an agent that has died was at: the last that it has told, `last` if that was all.
  static Step last_step(int socket, Step last = {}) {
    Step step;
    while (::recv(socket, &step, sizeof step, 0) == sizeof step) last = step;
    return last;
  }

  // The disks as of a committed epoch.
  Images images_of(std::uint64_t epoch) const {
    Images images = before_;
    for (std::uint64_t each = 1; each <= epoch; ++each)
      testing::apply_to(images, payload_of(writes_of(each)));
    return images;
  }

  // INVARIANT 2: before a commit begins nothing has changed; in its middle, the writes have been done in
  // their order up to one that may have been done in part, and the same epoch, applied again, heals that.
  void expect_what_a_death_may_leave(const Step& last) {
    SCOPED_TRACE("died in step " + std::to_string(last.kind) + " of epoch " + std::to_string(last.epoch));
    const Images left = images();
    if (last.kind != Step::committing) {
      const std::uint64_t epoch = last.kind == Step::committed ? last.epoch
                                  : last.epoch == 0            ? 0
                                                               : last.epoch - 1;
      EXPECT_TRUE(left == images_of(epoch)) << "the disks were touched outside a commit";
      if (epoch == 0) {
        EXPECT_TRUE(same_ram(ram_of(guest_), ram_));
      }
      return;
    }
    EXPECT_TRUE(is_on_its_way(left, last.epoch)) << "the disks are of no moment of the commit";
    Images healed = left;
    testing::apply_to(healed, payload_of(writes_of(last.epoch)));
    EXPECT_TRUE(healed == images_of(last.epoch));
    commit_again(last.epoch);
    EXPECT_TRUE(images() == images_of(last.epoch)) << "the epoch, committed again, doesn't heal the disks";
  }

  static bool is_on_its_way(const Images& left, Images from, const std::vector<Write>& writes) {
    for (const Write& write : writes) {
      Images next = from;
      testing::apply_to(next, payload_of({write}));
      const auto between = [&](std::size_t disk) {
        for (std::size_t i = 0; i < left[disk].size(); ++i) {
          if (left[disk][i] != from[disk][i] && left[disk][i] != next[disk][i]) return false;
        }
        return true;
      };
      if (between(0) && between(1)) return true;
      from = std::move(next);
    }
    return left == from;
  }
  bool is_on_its_way(const Images& left, std::uint64_t epoch) const {
    return is_on_its_way(left, images_of(epoch - 1), writes_of(epoch));
  }

  // By another agent, whose first epoch it is.
  void commit_again(std::uint64_t epoch) const {
    TestStandby standby(guest_, 0, {}, {{"sda", file_.get(), kDiskSize}, {"sdb", other_.get(), kOtherSize}});
    standby.engine->open_session(kTestToken, kGeneration, 1);
    TestConnection connection(*standby.engine, 0, 1, kGeneration);
    connection.send(Frames(0).end().bytes);
    ASSERT_TRUE(standby.wait_staged(0));
    standby.engine->open_epoch(1);
    connection.send(Frames(1).disk(payload_of(writes_of(epoch))).vmstate().end().bytes);
    ASSERT_TRUE(standby.wait_staged(1));
    EXPECT_EQ(standby.commit(1), "");
  }

  UniqueFd file_ = unnamed_file(kDiskSize), other_ = unnamed_file(kOtherSize);
  ModelledGuest guest_{{{4, true}}};
  Images before_, ram_;
};

TEST_F(StandbyCrashTest, DeathAtAnySystemCallLeavesWhatCanBeHealed) {
  std::map<int, unsigned> deaths;  // by step
  for (unsigned calls = 0;; ++calls) {
    SCOPED_TRACE("at call " + std::to_string(calls));
    restore(before_);
    guest_.scribble(0, 0, 4 * kPageSize, 0);
    ChildProcess agent([&](int socket) {
      DeadlyDiskCalls deadly(calls);
      return run_agent_that_tells(deadly, kEpochs, socket);
    });
    const Step last = last_step(agent.socket());
    const int status = agent.wait();
    expect_what_a_death_may_leave(last);
    if (HasFailure()) return;
    if (WIFEXITED(status)) {
      ASSERT_EQ(WEXITSTATUS(status), 0);
      break;
    }
    ++deaths[last.kind];
  }
  EXPECT_GE(deaths[Step::staging], kEpochs);
  EXPECT_GE(deaths[Step::committing], kEpochs * 8);
}

TEST_F(StandbyCrashTest, DeathAtAnyMomentLeavesWhatCanBeHealed) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  for (int round = 0; round < 30; ++round) {
    restore(before_);
    guest_.scribble(0, 0, 4 * kPageSize, 0);
    ChildProcess agent([&](int socket) { return run_agent_that_tells(system_disk_calls(), 8, socket); });
    Step told;
    for (auto steps = random() % 20 + 1; steps > 0; --steps) told = agent.receive<Step>();
    const timespec moment = {0, static_cast<long>(random() % 300'000)};
    ::nanosleep(&moment, nullptr);
    ::kill(agent.pid(), SIGKILL);
    const Step last = last_step(agent.socket(), told);
    agent.wait();
    expect_what_a_death_may_leave(last);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace colo
