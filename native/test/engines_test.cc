// Both engines, guest to guest, over loopback TCP.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <fstream>
#include <thread>

#include "../core/laps.h"
#include "primary_harness.h"

namespace colo {
namespace {

using testing::Bytes;
using testing::capture;
using testing::connect;
using testing::kGeneration;
using testing::kTestToken;
using testing::Listener;
using testing::ModelledGuest;
using testing::options_for;
using testing::Outcome;
using testing::protect;
using testing::ram_of;
using testing::same_ram;
using testing::sync;
using testing::TestStandby;
using testing::Tracker;
using testing::transmit;
using testing::vmstate_of;

struct Variant {
  const char* name;
  unsigned connections;
  Tracker tracker;
  bool shadow;
};

class EnginesTest : public ::testing::TestWithParam<Variant> {
 protected:
  // Blocks of odd sizes, one larger than a slice of the first copy.
  ModelledGuest primary_guest_{{{700, true}, {300, false}, {1, false}}};
  ModelledGuest standby_guest_{{{700, false}, {300, true}, {1, true}}};
  TestStandby standby_{standby_guest_};
  Listener listener_{[this](UniqueFd fd, std::string preface) {
    standby_.engine->add_connection(Connection(std::move(fd)), preface);
  }};
};

TEST_P(EnginesTest, StandbyIsAlwaysExactlyAtTheLastCommittedCheckpoint) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  standby_guest_.live(random, 50);  // what lies there before must not matter
  primary_guest_.live(random, 200);
  PrimaryEngine engine(options_for(primary_guest_, GetParam().tracker, GetParam().shadow));
  for (std::uint64_t session = 1; session <= 2; ++session) {
    standby_.engine->open_session(kTestToken, kGeneration, GetParam().connections);
    ASSERT_EQ(protect(engine), "");
    ASSERT_EQ(connect(engine, listener_.port, GetParam().connections), "");
    // The guest runs during the first copy.
    Outcome<> synced;
    std::vector<SyncProgress> progress;
    engine.sync(
        0, [&](SyncProgress now) { progress.push_back(now); }, synced.plain_done());
    for (int i = 0; i < 300 && !synced.ended(); ++i) primary_guest_.live(random, 1);
    ASSERT_EQ(synced.wait(), "");
    ASSERT_FALSE(progress.empty());
    EXPECT_EQ(progress.back().done_bytes, 1001 * kPageSize);
    EXPECT_EQ(progress.back().total_bytes, 1001 * kPageSize);
    ASSERT_TRUE(standby_.wait_staged(0));
    std::vector<Bytes> committed;
    for (std::uint64_t epoch = 1; epoch <= 20; ++epoch) {
      primary_guest_.live(random, random() % 3 == 0 ? 0 : static_cast<unsigned>(random() % 60));
      CaptureResult captured;
      ASSERT_EQ(capture(engine, epoch, &captured), "");
      const std::vector<Bytes> at_capture = primary_guest_.model();
      primary_guest_.live(random, 5);  // it runs on while the checkpoint is sent
      standby_.engine->open_epoch(epoch);
      TransmitResult sent;
      const std::string vmstate = vmstate_of(epoch, 100 + random() % 40000);
      ASSERT_EQ(transmit(engine, epoch, vmstate, &sent), "");
      ASSERT_TRUE(standby_.wait_staged(epoch)) << standby_.wait_failure();
      const StagedCheckpoint staged = standby_.staged().back();
      EXPECT_EQ(sent.zero_pages + sent.delta_pages + sent.raw_pages, staged.pages);
      EXPECT_EQ(staged.pages + sent.unchanged_pages, captured.pages);
      EXPECT_EQ(sent.wire_bytes, staged.wire_bytes);
      EXPECT_EQ(sent.raw_bytes, captured.pages * kPageSize);
      EXPECT_EQ(staged.vmstate_bytes, vmstate.size());
      if (!GetParam().shadow) {
        EXPECT_EQ(sent.delta_pages + sent.unchanged_pages, 0u);
      }
      // INVARIANT 2, where an earlier checkpoint has been committed.
      if (epoch > 1) {
        ASSERT_TRUE(same_ram(ram_of(standby_guest_), committed)) << "epoch " << epoch;
      }
      CommitResult commit;
      ASSERT_EQ(standby_.commit(epoch, &commit), "");
      // One after the other, on one clock.
      const std::uint64_t captured_us =
          captured.began_us + captured.seal_us + captured.scan_us + captured.copy_us;
      EXPECT_LE(captured_us, sent.began_us);
      EXPECT_LE(sent.began_us, staged.began_us);
      EXPECT_LE(staged.began_us + staged.received_us, commit.began_us);
      EXPECT_LE(commit.began_us + commit.ram_us + commit.disks_us + commit.mailbox_us, monotonic_us());
      committed = at_capture;
      ASSERT_TRUE(same_ram(ram_of(standby_guest_), committed)) << "epoch " << epoch;
      EXPECT_EQ(standby_.mailbox_vmstate(vmstate.size()), vmstate);
    }
    engine.disconnect();
    EXPECT_EQ(standby_.wait_failure().substr(0, 13), "ERR_COLO_LINK");
    standby_.engine->close_session();
    standby_.forget_events();
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, EnginesTest,
                         ::testing::Values(Variant{"compare_1", 1, Tracker::compare, true},
                                           Variant{"compare_3", 3, Tracker::compare, true},
                                           Variant{"userfaultfd_1", 1, Tracker::userfaultfd, true},
                                           Variant{"userfaultfd_2_without_shadow", 2, Tracker::userfaultfd,
                                                   false}),
                         [](const auto& tested) { return std::string(tested.param.name); });

class EngineFailuresTest : public ::testing::TestWithParam<Tracker> {
 protected:
  // A session on `connections` connections, ready for epoch 1.
  void begin(PrimaryEngine& engine, unsigned connections) {
    standby_.forget_events();
    standby_.engine->open_session(kTestToken, kGeneration, connections);
    ASSERT_EQ(connect(engine, listener_.port, connections), "");
    ASSERT_EQ(sync(engine), "");
    ASSERT_TRUE(standby_.wait_staged(0));
  }
  void checkpoint(PrimaryEngine& engine, std::uint64_t epoch) {
    ASSERT_EQ(capture(engine, epoch), "");
    const std::vector<Bytes> expected = primary_guest_.model();
    standby_.engine->open_epoch(epoch);
    ASSERT_EQ(transmit(engine, epoch, vmstate_of(epoch, 1000)), "");
    ASSERT_TRUE(standby_.wait_staged(epoch));
    ASSERT_EQ(standby_.commit(epoch), "");
    ASSERT_TRUE(same_ram(ram_of(standby_guest_), expected)) << "epoch " << epoch;
  }

  std::mt19937_64 random_{std::random_device{}()};
  ModelledGuest primary_guest_{{{400, true}, {100, false}}};
  ModelledGuest standby_guest_{{{400, true}, {100, false}}};
  TestStandby standby_{standby_guest_};
  Listener listener_{[this](UniqueFd fd, std::string preface) {
    standby_.engine->add_connection(Connection(std::move(fd)), preface);
  }};
};

// INVARIANT 3, both ways in which a captured checkpoint comes to nothing without the link being lost.
TEST_P(EngineFailuresTest, AbandonedPagesGoWithTheNextCheckpoint) {
  PrimaryEngine engine(options_for(primary_guest_, GetParam()));
  ASSERT_EQ(protect(engine), "");
  begin(engine, 1);
  for (std::uint64_t epoch = 1; epoch <= 10; ++epoch) {
    primary_guest_.live(random_, 30);
    ASSERT_EQ(capture(engine, epoch), "");
    if (epoch % 2 == 0) {
      // The device state is missing: nothing may have been sent.
      ASSERT_EQ(transmit(engine, epoch, ""), "ERR_COLO_VMSTATE");
    }
    engine.abandon();
    primary_guest_.live(random_, 2);
    checkpoint(engine, epoch);
  }
}

// INVARIANT 3: without a first copy in this session nobody knows what the shadow is worth.
TEST_P(EngineFailuresTest, NewSessionWithoutAFirstCopySendsNothing) {
  PrimaryEngine engine(options_for(primary_guest_, GetParam()));
  ASSERT_EQ(protect(engine), "");
  begin(engine, 1);
  checkpoint(engine, 1);
  engine.disconnect();
  standby_.engine->open_session(kTestToken, kGeneration, 1);
  standby_.forget_events();
  ASSERT_EQ(connect(engine, listener_.port, 1), "");
  primary_guest_.live(random_, 10);
  ASSERT_EQ(capture(engine, 1), "");
  EXPECT_EQ(transmit(engine, 1, vmstate_of(1, 100)), "ERR_COLO_LINK");
  ASSERT_EQ(sync(engine), "");
  ASSERT_TRUE(standby_.wait_staged(0));
  checkpoint(engine, 1);
}

TEST_P(EngineFailuresTest, AfterALostLinkAFullCopyMakesBothSidesEqualAgain) {
  PrimaryEngine engine(options_for(primary_guest_, GetParam()));
  ASSERT_EQ(protect(engine), "");
  for (int session = 0; session < 6; ++session) {
    const unsigned connections = 1 + static_cast<unsigned>(session) % 3;
    // Without protect(): what was dirty stays so.
    begin(engine, connections);
    primary_guest_.live(random_, 40);
    checkpoint(engine, 1);
    const std::vector<Bytes> committed = ram_of(standby_guest_);
    primary_guest_.live(random_, 300);
    ASSERT_EQ(capture(engine, 2), "");
    standby_.engine->open_epoch(2);
    standby_.engine->close_session();  // the other side is gone while, or before, the checkpoint is sent
    const std::string failure = transmit(engine, 2, vmstate_of(2, 1000));
    EXPECT_TRUE(failure.empty() || failure == "ERR_COLO_LINK");
    EXPECT_TRUE(same_ram(ram_of(standby_guest_), committed));
    if (!failure.empty()) {
      primary_guest_.live(random_, 3);
      ASSERT_EQ(capture(engine, 3), "");
      EXPECT_EQ(transmit(engine, 3, vmstate_of(3, 1000)), "ERR_COLO_LINK");  // the shadow is unknown
    }
    engine.disconnect();
  }
}

INSTANTIATE_TEST_SUITE_P(Trackers, EngineFailuresTest,
                         ::testing::Values(Tracker::compare, Tracker::userfaultfd), [](const auto& tested) {
                           return std::string(tested.param == Tracker::compare ? "compare" : "userfaultfd");
                         });

// A peer that takes connections and doesn't read.
class SilentPeer {
 public:
  SilentPeer() : listener([this](UniqueFd fd, std::string) { connections_.push_back(std::move(fd)); }) {}

 private:
  std::vector<UniqueFd> connections_;

 public:
  Listener listener;
};

TEST(PrimaryEngine, DisconnectEndsABlockedFirstCopyAndTheEngineLivesOn) {
  ModelledGuest guest({{16384, false}});
  std::mt19937_64 random(1);
  for (std::uint64_t page = 0; page < 16384; page += 2) guest.scribble(0, page * kPageSize, 8, page + 1);
  SilentPeer peer;
  PrimaryEngine engine(options_for(guest));
  for (int round = 0; round < 3; ++round) {
    ASSERT_EQ(connect(engine, peer.listener.port, 2), "");
    Outcome<> synced;
    std::atomic<std::uint64_t> done_bytes = 0;
    engine.sync(
        0, [&](SyncProgress now) { done_bytes = now.done_bytes; }, synced.plain_done());
    // It stands once the socket buffers are full: two reports in a row say the same.
    ASSERT_TRUE(testing::wait_until([&] { return done_bytes > 0; }));
    EXPECT_FALSE(synced.ended());
    engine.disconnect();
    EXPECT_EQ(synced.wait(), "ERR_COLO_LINK");
  }
}

TEST(PrimaryEngine, CloseEndsABlockedJobAndRefusesTheNext) {
  ModelledGuest guest({{100, false}});
  guest.scribble(0, 0, 100 * kPageSize, 1);
  SilentPeer peer;
  PrimaryEngine engine(options_for(guest));
  ASSERT_EQ(connect(engine, peer.listener.port, 1), "");
  Outcome<> synced;
  engine.sync(
      1, [](SyncProgress) {}, synced.plain_done());  // one byte a second
  std::thread other([&engine] { engine.close(); });
  engine.close();
  EXPECT_TRUE(synced.ended());
  EXPECT_EQ(synced.wait(), "ERR_COLO_CLOSED");
  other.join();
  EXPECT_THROW(engine.protect([](const Error*) {}), Error);
  engine.disconnect();
}

// Whether a connection to this port of the loopback address waits for its answer (state SYN_SENT in
// /proc/net/tcp).
bool connection_waits(std::uint16_t port) {
  char wanted[32];
  std::snprintf(wanted, sizeof wanted, "0100007F:%04X 02 ", port);
  std::ifstream file("/proc/self/net/tcp");
  for (std::string line; std::getline(file, line);) {
    if (line.find(wanted) != std::string::npos) return true;
  }
  return false;
}

TEST(PrimaryEngine, DisconnectEndsAConnectThatGetsNoAnswer) {
  const ModelledGuest guest({{1, false}});
  const Listener full({}, 0);  // it never accepts, and its queue takes one or two
  PrimaryEngine engine(options_for(guest));
  Outcome<> connected;
  engine.connect("127.0.0.1", full.port, kTestToken, 1, 8, nullptr, connected.plain_done());
  ASSERT_TRUE(testing::wait_until([&] { return connection_waits(full.port); }));
  engine.disconnect();
  EXPECT_EQ(connected.wait(), "ERR_COLO_LINK");
  EXPECT_EQ(connected.what().find("timed out"), std::string::npos) << connected.what();
}

TEST(PrimaryEngine, NobodyListeningIsALinkError) {
  const ModelledGuest guest({{1, false}});
  PrimaryEngine engine(options_for(guest));
  std::uint16_t port = 0;
  {
    const Listener gone;
    port = gone.port;
  }
  EXPECT_EQ(connect(engine, port, 1), "ERR_COLO_LINK");
  EXPECT_EQ(sync(engine), "ERR_COLO_LINK");
}

TEST(PrimaryEngine, FirstCopyKeepsToItsRate) {
  ModelledGuest guest({{512, false}});
  for (std::uint64_t page = 0; page < 512; ++page) guest.scribble(0, page * kPageSize, 1, 9);
  const ModelledGuest standby_guest({{512, false}});
  TestStandby standby(standby_guest);
  standby.engine->open_session(kTestToken, kGeneration, 2);
  const Listener listener([&](UniqueFd fd, std::string preface) {
    standby.engine->add_connection(Connection(std::move(fd)), preface);
  });
  PrimaryEngine engine(options_for(guest));
  ASSERT_EQ(connect(engine, listener.port, 2), "");
  const auto begin = std::chrono::steady_clock::now();
  Outcome<> synced;
  engine.sync(
      10u << 20, [](SyncProgress) {}, synced.plain_done());
  ASSERT_EQ(synced.wait(), "");
  // Two MiB at ten a second can't be sooner; how much later depends on the machine.
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(200));
  EXPECT_TRUE(standby.wait_staged(0));
}

TEST(PrimaryEngine, LostGuestFailsTheCaptureAndTheFirstCopy) {
  ModelledGuest guest({{2048, false}});
  guest.scribble(0, 0, 2048 * kPageSize, 1);
  SilentPeer peer;
  PrimaryEngine engine(options_for(guest));
  ASSERT_EQ(connect(engine, peer.listener.port, 2), "");
  Outcome<> synced;
  std::atomic<bool> under_way = false;
  engine.sync(
      4u << 20, [&](SyncProgress) { under_way = true; }, synced.plain_done());
  ASSERT_TRUE(testing::wait_until([&] { return under_way.load(); }));
  guest.kill();
  EXPECT_EQ(synced.wait(),
            "ERR_COLO_GUEST_MEMORY");  // the reason, not the cut of the other connection that follows
  EXPECT_EQ(capture(engine, 1), "ERR_COLO_GUEST_MEMORY");
}

TEST(PrimaryEngine, TellsWhichTrackerItUsesAndWhy) {
  const ModelledGuest guest({{10, true}, {10, false}});
  PrimaryEngine compare(options_for(guest, Tracker::compare));
  EXPECT_EQ(compare.info().kind, TrackerKind::compare);
  EXPECT_EQ(compare.info().reason, "asked for");
  EXPECT_EQ(compare.info().access, (std::vector{MemoryAccess::mapped, MemoryAccess::remote}));
  PrimaryEngine first(options_for(guest, Tracker::automatic));
  EXPECT_EQ(first.info().kind, TrackerKind::userfaultfd);
  EXPECT_EQ(first.info().reason, "");
  // Another tracker holds the ranges: automatic falls back, an explicit wish doesn't.
  PrimaryEngine second(options_for(guest, Tracker::automatic));
  EXPECT_EQ(second.info().kind, TrackerKind::compare);
  EXPECT_NE(second.info().reason, "");
  EXPECT_THROW(PrimaryEngine(options_for(guest, Tracker::userfaultfd)), Error);
  EXPECT_THROW(PrimaryEngine(options_for(guest, Tracker::automatic, false)), Error);
  EXPECT_THROW(PrimaryEngine(options_for(guest, Tracker::compare, false)), Error);
  // Closing lifts the protection, so that the next can have it.
  first.close();
  PrimaryEngine third(options_for(guest, Tracker::userfaultfd));
  EXPECT_EQ(third.info().kind, TrackerKind::userfaultfd);
}

TEST(PrimaryEngine, OneJobAtATimeIsAsserted) {
  ModelledGuest guest({{100, false}});
  guest.scribble(0, 0, 100 * kPageSize, 1);
  SilentPeer peer;
  PrimaryEngine engine(options_for(guest));
  ASSERT_EQ(connect(engine, peer.listener.port, 1), "");
  Outcome<> synced;
  engine.sync(
      1, [](SyncProgress) {}, synced.plain_done());
  EXPECT_DEATH(engine.protect([](const Error*) {}), "busy");
  EXPECT_DEATH(engine.abandon(), "busy");
  engine.close();
}

}  // namespace
}  // namespace colo
