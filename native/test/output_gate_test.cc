#include "../core/output_gate.h"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <thread>

#include "../core/error.h"
#include "gate_harness.h"

namespace colo {
namespace {

using testing::frame;
using testing::GateEvents;
using testing::Nic;
using testing::wait_stats;

constexpr std::size_t kHeader = 8;

TEST(OutputGate, PassesThroughByteForByteUntilTheFirstSeal) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  const std::string sent = frame("hello") + frame("") + frame(std::string(69632, 'v'), 12);
  nic.send(sent);
  EXPECT_EQ(nic.receive(sent.size()), sent);
  EXPECT_FALSE(gate.stats().holding);
  EXPECT_EQ(events.held(), 0);
}

// What was sent before the first seal is drained by it and leaves: the secondary's first copy doesn't have to
// answer for it.
TEST(OutputGate, TheFirstSealLetsGoWhatItDrained) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  nic.send(frame("before"));
  gate.seal(7);
  nic.send(frame("after"));
  EXPECT_EQ(nic.receive(kHeader + 6), frame("before"));
  ASSERT_TRUE(events.wait_held(1));
  EXPECT_TRUE(nic.silent());
  EXPECT_EQ(gate.stats().held_frames, 1u);
}

// INVARIANT 1.
TEST(OutputGate, NothingOfAnEpochLeavesBeforeItsRelease) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  gate.seal(1);
  nic.send(frame("two"));
  gate.seal(2);
  nic.send(frame("three"));
  gate.seal(3);
  nic.send(frame("four"));
  ASSERT_TRUE(wait_stats(gate, [](const GateStats& stats) { return stats.held_frames == 3; }));
  EXPECT_TRUE(nic.silent());
  gate.release(1);
  EXPECT_EQ(gate.stats().released_frames, 0u);
  gate.release(2);
  EXPECT_EQ(nic.receive(kHeader + 3), frame("two"));
  EXPECT_TRUE(nic.silent());
  gate.release(3);
  EXPECT_EQ(nic.receive(kHeader + 5), frame("three"));
  ASSERT_TRUE(wait_stats(gate, [](const GateStats& stats) { return stats.held_frames == 1; }));
  EXPECT_TRUE(nic.silent());
}

// A frame whose end the seal hasn't seen can't have been whole for the guest either: it belongs to the next
// epoch.
TEST(OutputGate, AFrameCutByTheSealBelongsToTheNextEpoch) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  gate.seal(1);
  const std::string whole = frame("first"), cut = frame("second");
  nic.send(whole + cut.substr(0, 11));
  gate.seal(2);
  nic.send(cut.substr(11));
  gate.release(2);
  EXPECT_EQ(nic.receive(whole.size()), whole);
  ASSERT_TRUE(wait_stats(gate, [](const GateStats& stats) { return stats.held_frames == 1; }));
  EXPECT_TRUE(nic.silent());
  gate.open();
  EXPECT_EQ(nic.receive(cut.size()), cut);
}

// A checkpoint whose device state could not be saved, say: its epoch goes on until the next attempt.
TEST(OutputGate, AnEpochSealedAgainEndsAtTheNewPlace) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  gate.seal(1);
  nic.send(frame("first"));
  gate.seal(2);
  nic.send(frame("again"));
  gate.seal(2);
  nic.send(frame("next"));
  gate.release(2);
  EXPECT_EQ(nic.receive(2 * (kHeader + 5)), frame("first") + frame("again"));
  EXPECT_TRUE(nic.silent());
  gate.seal(3);
  gate.release(3);
  EXPECT_EQ(nic.receive(kHeader + 4), frame("next"));
}

TEST(OutputGateDeathTest, WhatHasBeenReleasedIsNotSealedAgain) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  gate.seal(1);
  gate.release(1);
  EXPECT_DEATH(gate.seal(1), "again");
}

// INVARIANT 7: handing over keeps the order of what was held and what comes.
TEST(OutputGate, OpenLetsEverythingGoInOrderAndAllowsANewSession) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  gate.seal(1);
  nic.send(frame("a"));
  gate.seal(2);
  nic.send(frame("b"));
  gate.open();
  nic.send(frame("c"));
  EXPECT_EQ(nic.receive(3 * (kHeader + 1)), frame("a") + frame("b") + frame("c"));
  gate.release(2);  // a RECEIVED that came too late changes nothing
  gate.seal(1);
  nic.send(frame("d"));
  ASSERT_TRUE(wait_stats(gate, [](const GateStats& stats) { return stats.held_frames == 1; }));
  EXPECT_TRUE(nic.silent());
}

// Two ports, frames of all sizes cut anywhere, seals, releases and hand-overs in any order; the oracle keeps
// lists of frames.
TEST(OutputGate, EqualsAListOfFramesUnderAnyInterleaving) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    GateEvents events;
    OutputGate gate({}, events.callbacks());
    struct Side {
      Nic nic;
      std::string unsent;                  // the rest of a frame that was cut
      std::string open_epoch, unfinished;  // whole frames of the open epoch; the one on its way
      std::deque<std::string> sealed;
    };
    Side sides[2];
    for (Side& side : sides) side.nic.attach(gate);
    bool holding = false;
    std::uint64_t sealed = 0, released = 0;
    for (int step = 0; step < 150; ++step) {
      Side& side = sides[random() % 2];
      switch (random() % 6) {
        case 0:
        case 1:
        case 2: {
          const std::size_t size = random() % 10 == 0 ? random() % 69633 : random() % 200;
          const std::string one =
              side.unsent.empty() ? frame(std::string(size, static_cast<char>(random()))) : side.unsent;
          const std::size_t cut = random() % 3 == 0 ? random() % one.size() : one.size();
          side.nic.send(one.substr(0, cut));
          side.unfinished += one.substr(0, cut);
          side.unsent = one.substr(cut);
          if (side.unsent.empty()) side.open_epoch += std::exchange(side.unfinished, {});
          break;
        }
        case 3:
          sealed = holding ? sealed + 1 : 1 + random() % 5;
          if (!holding) released = sealed;
          gate.seal(sealed);
          for (Side& each : sides) {
            if (holding) each.sealed.push_back(std::exchange(each.open_epoch, {}));
          }
          holding = true;
          break;
        case 4: {
          if (!holding) break;
          const std::uint64_t up_to = released + random() % (sealed - released + 1);
          gate.release(up_to);
          for (Side& each : sides) {
            for (std::uint64_t epoch = released; epoch < up_to; ++epoch) {
              const std::string expected = each.sealed.front();
              each.sealed.pop_front();
              ASSERT_EQ(each.nic.receive(expected.size()), expected);
            }
          }
          released = up_to;
          break;
        }
        default:
          if (random() % 4 != 0) break;
          gate.open();
          holding = false;
          for (Side& each : sides) {
            for (const std::string& epoch : each.sealed) ASSERT_EQ(each.nic.receive(epoch.size()), epoch);
            each.sealed.clear();
          }
      }
      for (Side& each : sides) {
        if (!holding) {
          const std::string expected = std::exchange(each.open_epoch, {});
          ASSERT_EQ(each.nic.receive(expected.size()), expected);
        }
        ASSERT_TRUE(each.nic.silent()) << "step " << step;
      }
    }
    EXPECT_EQ(gate.stats().dropped_frames, 0u);
  }
}

// QEMU reads the release socket in the thread that writes to the held one, so the gate may neither block nor
// lose anything.
TEST(OutputGate, AReaderThatIsSlowLosesNothing) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic(4096);
  nic.attach(gate);
  gate.seal(1);
  std::string sent;
  for (int i = 0; i < 2000; ++i) {
    const std::string one = frame(std::to_string(i) + std::string(1500, static_cast<char>(i)));
    nic.send(one);  // all of it, before a single byte is read back
    sent += one;
  }
  gate.seal(2);
  gate.release(2);
  for (std::size_t at = 0; at < sent.size();) {
    const std::size_t piece = std::min<std::size_t>(3001, sent.size() - at);
    ASSERT_EQ(nic.receive(piece), sent.substr(at, piece));
    at += piece;
  }
  ASSERT_TRUE(wait_stats(gate, [](const GateStats& stats) { return stats.released_frames == 2000; }));
  EXPECT_EQ(gate.stats().held_bytes, 0u);
}

constexpr std::uint64_t kSmallLimit = 200000;

TEST(OutputGate, AtTheLimitItStopsReadingAndGoesOnWhenThereIsRoom) {
  GateEvents events;
  OutputGate gate({.limit_bytes = kSmallLimit, .pressure_bytes = 100000, .stall_ms = 60000},
                  events.callbacks());
  Nic nic;
  nic.attach(gate);
  gate.seal(1);
  const std::string one = frame(std::string(992, 'x'));  // 1,000 bytes with its header
  for (int i = 0; i < 150; ++i) nic.send(one);
  gate.seal(2);
  std::thread qemu([&] {
    for (int i = 0; i < 1000; ++i) nic.send(one);
  });
  ASSERT_TRUE(wait_stats(gate, [](const GateStats& stats) { return stats.held_bytes == kSmallLimit; }));
  ASSERT_TRUE(events.wait_pressure(1));
  gate.release(2);
  for (int i = 0; i < 150; ++i) ASSERT_EQ(nic.receive(one.size()), one);
  ASSERT_TRUE(wait_stats(gate, [](const GateStats& stats) { return stats.held_bytes == kSmallLimit; }));
  gate.open();
  for (int i = 0; i < 1000; ++i) ASSERT_EQ(nic.receive(one.size()), one);
  qemu.join();
  EXPECT_EQ(gate.stats().dropped_frames, 0u);
  EXPECT_EQ(gate.stats().released_frames, 1150u);
}

// A QEMU that is held up can't stop for the checkpoint that would make room: after stall_ms whole frames are
// dropped, and counted.
TEST(OutputGate, AStalledGateDropsWholeFramesAndRecovers) {
  GateEvents events;
  OutputGate gate({.limit_bytes = kSmallLimit, .pressure_bytes = 100000, .stall_ms = 20}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  gate.seal(1);
  constexpr int kSent = 3000;
  const auto numbered = [](int i) { return frame("#" + std::to_string(i) + std::string(i % 1400, '.')); };
  for (int i = 0; i < kSent; ++i) nic.send(numbered(i));  // returns only because of the drops
  gate.seal(2);
  const GateStats full = gate.stats();
  EXPECT_LE(full.held_bytes, kSmallLimit);
  EXPECT_EQ(full.held_frames + full.dropped_frames, static_cast<unsigned>(kSent));
  EXPECT_GT(full.dropped_frames, 0u);
  gate.release(2);
  for (std::uint64_t i = 0; i < full.held_frames; ++i) {
    const std::string expected = numbered(static_cast<int>(i));  // the oldest are kept
    ASSERT_EQ(nic.receive(expected.size()), expected);
  }
  ASSERT_TRUE(wait_stats(gate, [](const GateStats& stats) { return stats.held_bytes == 0; }));
  nic.send(numbered(5));
  gate.seal(3);
  gate.release(3);
  EXPECT_EQ(nic.receive(numbered(5).size()), numbered(5));
}

// In pass-through too: QEMU writes without reading, as its one thread does in a burst. Without drops both
// sides would wait for ever.
TEST(OutputGate, AStalledPassThroughNeverWedgesQemu) {
  GateEvents events;
  OutputGate gate({.limit_bytes = kSmallLimit, .pressure_bytes = 100000, .stall_ms = 20}, events.callbacks());
  Nic nic(4096);
  nic.attach(gate);
  const std::string one = frame(std::string(992, 'x'));
  for (int i = 0; i < 2000; ++i) nic.send(one);
  EXPECT_GT(gate.stats().dropped_frames, 0u);
  ASSERT_EQ(nic.receive(one.size()), one);
}

TEST(OutputGate, ASealThatCannotDrainThrowsAndLeavesTheGateUnsealed) {
  GateEvents events;
  OutputGate gate({.limit_bytes = kSmallLimit, .pressure_bytes = 100000, .stall_ms = 60000},
                  events.callbacks());
  Nic nic;
  nic.attach(gate);
  gate.seal(1);
  const std::string one = frame(std::string(992, 'x'));
  for (int i = 0; i < 200; ++i) nic.send(one);
  ASSERT_TRUE(wait_stats(gate, [&](const GateStats& stats) { return stats.held_bytes == 200 * one.size(); }));
  ASSERT_EQ(nic.send_now(one), one.size());
  try {
    gate.seal(2);
    FAIL() << "sealed beyond the limit";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_GATE_FULL");
  }
  gate.open();
  for (int i = 0; i < 201; ++i) ASSERT_EQ(nic.receive(one.size()), one);
}

TEST(OutputGate, ReportsHeldOutputAndPressureOncePerSeal) {
  GateEvents events;
  OutputGate gate({.limit_bytes = kSmallLimit, .pressure_bytes = 50000}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  for (std::uint64_t epoch = 1; epoch <= 3; ++epoch) {
    gate.seal(epoch);
    for (int i = 0; i < 100; ++i) nic.send(frame(std::string(992, 'x')));
    ASSERT_TRUE(wait_stats(gate, [](const GateStats& stats) { return stats.held_frames == 100; }));
    ASSERT_TRUE(events.wait_held(static_cast<int>(epoch)));
    ASSERT_TRUE(events.wait_pressure(static_cast<int>(epoch)));
    EXPECT_EQ(events.held(), static_cast<int>(epoch));
    EXPECT_EQ(events.pressure(), static_cast<int>(epoch));
    gate.seal(epoch + 1);
    gate.release(epoch + 1);
    nic.receive(100 * 1000);
    gate.open();
  }
}

TEST(OutputGate, AMalformedFrameBreaksThePortAndNothingHalfLeaves) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  gate.seal(1);
  nic.send(frame("good") + frame("cut").substr(0, 9));
  ASSERT_TRUE(events.wait_held(1));
  nic.send(std::string(2, 'x') + frame("").replace(0, 1, "\x7f"));
  ASSERT_TRUE(events.wait_broken(1));
  EXPECT_EQ(events.broken(), std::vector<std::string>{"QEMU sent a malformed frame"});
  gate.open();
  EXPECT_EQ(nic.receive(kHeader + 4), frame("good"));
  // "cut" was whole by then; it came together with what can't be read, and goes with it.
  EXPECT_EQ(gate.stats().dropped_frames, 1u);
  EXPECT_EQ(gate.stats().held_frames, 0u);
}

TEST(OutputGate, ReportsAPortThatQemuClosed) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic brings, takes;
  brings.attach(gate);
  takes.attach(gate);
  brings.held.reset();
  ASSERT_TRUE(events.wait_broken(1));
  takes.release.reset();
  ASSERT_TRUE(events.wait_broken(2));
  EXPECT_EQ(events.broken(),
            (std::vector<std::string>{"QEMU closed the socket that brings the guest's frames",
                                      "QEMU closed the socket that takes the guest's frames back"}));
}

// What a dead port holds must not take the others' room for ever.
TEST(OutputGate, APortWithoutAReaderGivesItsRoomBack) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  gate.seal(1);
  nic.send(frame("held"));
  ASSERT_TRUE(events.wait_held(1));
  nic.release.reset();
  ASSERT_TRUE(events.wait_broken(1));
  EXPECT_EQ(gate.stats().held_bytes, 0u);
  EXPECT_EQ(gate.stats().dropped_frames, 1u);
  gate.seal(2);
  gate.release(2);
}

TEST(OutputGate, FlushWaitsUntilQemuHasReadEverything) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  EXPECT_TRUE(gate.flush(0));
  nic.send(frame("late"));
  EXPECT_FALSE(gate.flush(20));
  std::thread qemu([&] { nic.receive(kHeader + 4); });
  EXPECT_TRUE(gate.flush(testing::kPatienceMs));
  qemu.join();
}

// INVARIANT 1, the agent's end: it fails closed.
TEST(OutputGate, CloseDropsWhatIsHeld) {
  GateEvents events;
  Nic nic;
  {
    OutputGate gate({}, events.callbacks());
    nic.attach(gate);
    gate.seal(1);
    nic.send(frame("never"));
    ASSERT_TRUE(events.wait_held(1));
    gate.close();
    gate.close();
    EXPECT_EQ(gate.stats().dropped_frames, 1u);
    EXPECT_THROW(gate.seal(2), Error);
    EXPECT_FALSE(gate.flush(testing::kPatienceMs));
    Nic late;
    EXPECT_THROW(late.attach(gate), Error);
    char byte;
    EXPECT_EQ(::recv(late.held.get(), &byte, 1, 0), 0) << "the descriptors are closed";
  }
  char byte;
  EXPECT_EQ(::recv(nic.release.get(), &byte, 1, 0), 0);
}

TEST(OutputGate, CloseEndsAFlushThatWaits) {
  GateEvents events;
  OutputGate gate({}, events.callbacks());
  Nic nic;
  nic.attach(gate);
  nic.send(frame("unread"));
  std::thread closer([&] {
    wait_stats(gate, [](const GateStats& stats) { return stats.released_frames == 1; });
    gate.close();
  });
  EXPECT_FALSE(gate.flush(600000));
  closer.join();
}

TEST(OutputGateDeathTest, NoEpochIsReleasedThatWasNotSealed) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_DEATH(
      {
        OutputGate gate({}, GateEvents().callbacks());
        gate.seal(1);
        gate.release(2);
      },
      "assertion failed: epoch <= state.sealed_epoch");
  EXPECT_DEATH(
      {
        OutputGate gate({}, GateEvents().callbacks());
        gate.seal(1);
        gate.seal(3);
      },
      "assertion failed: .*sealed_epoch");
}

}  // namespace
}  // namespace colo
