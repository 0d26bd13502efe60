#include "../core/heartbeat_judge.h"

#include <gtest/gtest.h>

#include <optional>

namespace colo {
namespace {

using Clock = HeartbeatJudge::Clock;
using Kind = HeartbeatVerdict::Kind;
using std::chrono::milliseconds;

constexpr HeartbeatLimits kLimits = {.interval = milliseconds(50),
                                     .timeout = milliseconds(800),
                                     .first_timeout = milliseconds(5000),
                                     .stall_timeout = milliseconds(10'000),
                                     .closed_grace = milliseconds(100)};

// A judge whose owner wakes every 25 ms, unless it stands still.
class Watcher {
 public:
  void heard(std::uint64_t progress = 0) { judge.heard(now, progress); }
  void run_for(int time_ms, bool peer_beats = false, bool peer_moves = false) {
    for (const auto end = now + milliseconds(time_ms); now < end;) {
      now += milliseconds(25);
      judge.observe(now);
      if (peer_moves) ++progress_;
      if (peer_beats) judge.heard(now, progress_);
      if (!verdict) verdict = judge.verdict(now);
    }
  }
  void stand_still_for(int time_ms) {
    now += milliseconds(time_ms);
    judge.observe(now);
  }

  Clock::time_point now{};
  HeartbeatJudge judge{kLimits, now};
  std::optional<HeartbeatVerdict> verdict;

 private:
  std::uint64_t progress_ = 1;
};

TEST(HeartbeatJudge, APeerThatSaysNothingForTheTimeOutIsDead) {
  Watcher watcher;
  watcher.heard();
  watcher.run_for(775);
  EXPECT_FALSE(watcher.verdict);
  watcher.run_for(25);
  ASSERT_TRUE(watcher.verdict);
  EXPECT_EQ(watcher.verdict->kind, Kind::silent);
  EXPECT_EQ(watcher.verdict->reason, "has said nothing for 800 ms");
  EXPECT_EQ(watcher.verdict->heard, Clock::time_point{});
}

TEST(HeartbeatJudge, BeforeTheFirstHeartbeatItWaitsLonger) {
  Watcher watcher;
  watcher.run_for(4975);
  EXPECT_FALSE(watcher.verdict);
  watcher.run_for(25);
  EXPECT_TRUE(watcher.verdict);
}

TEST(HeartbeatJudge, APeerThatBeatsButDoesNothingIsAsGoodAsDead) {
  Watcher watcher;
  watcher.run_for(9975, true);
  EXPECT_FALSE(watcher.verdict);
  watcher.run_for(50, true);
  ASSERT_TRUE(watcher.verdict);
  EXPECT_EQ(watcher.verdict->kind, Kind::stalled);
}

TEST(HeartbeatJudge, APeerThatBeatsAndMovesLives) {
  Watcher watcher;
  watcher.run_for(60'000, true, true);
  EXPECT_FALSE(watcher.verdict);
}

TEST(HeartbeatJudge, OurOwnStandStillIsNobodysSilence) {
  Watcher watcher;
  watcher.heard();
  watcher.run_for(600);
  watcher.stand_still_for(60'000);
  EXPECT_FALSE(watcher.judge.verdict(watcher.now));
  watcher.heard();
  watcher.run_for(600);
  EXPECT_FALSE(watcher.verdict);
}

TEST(HeartbeatJudge, AfterAStandStillTheRestOfTheTimeOutCounts) {
  Watcher watcher;
  watcher.heard();
  watcher.run_for(600);
  watcher.stand_still_for(60'000);  // two intervals of which count
  watcher.run_for(75);
  EXPECT_FALSE(watcher.verdict);
  watcher.run_for(25);
  EXPECT_TRUE(watcher.verdict);
}

TEST(HeartbeatJudge, AStandStillNeitherFakesTheStallOfAPeer) {
  Watcher watcher;
  watcher.run_for(9000, true);
  watcher.stand_still_for(60'000);
  watcher.run_for(25, true, true);
  EXPECT_FALSE(watcher.verdict);
}

TEST(HeartbeatJudge, AnEndedConnectionIsToldAfterItsGrace) {
  Watcher watcher;
  watcher.heard();
  watcher.judge.closed(watcher.now, "the connection was closed");
  watcher.run_for(75);
  EXPECT_FALSE(watcher.verdict);
  watcher.run_for(25);
  ASSERT_TRUE(watcher.verdict);
  EXPECT_EQ(watcher.verdict->kind, Kind::closed);
  EXPECT_EQ(watcher.verdict->reason, "has ended its heartbeats: the connection was closed");
}

TEST(HeartbeatJudge, TheGraceIsNotSpentByAStandStill) {
  Watcher watcher;
  watcher.heard();
  watcher.judge.closed(watcher.now, "the connection was closed");
  watcher.stand_still_for(60'000);
  EXPECT_TRUE(watcher.judge.verdict(watcher.now)) << "two intervals are the grace";
  Watcher other;
  other.judge.closed(other.now, "the connection was closed");
  other.run_for(25);
  other.stand_still_for(150);
  EXPECT_EQ(other.judge.due() - other.now, milliseconds(-25));
}

}  // namespace
}  // namespace colo
