#include "../core/standby_engine.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "../core/checkpoint_stream.h"
#include "engine_harness.h"
#include "test_socket_calls.h"

namespace colo {
namespace {

using testing::Bytes;
using testing::kTestToken;
using testing::ModelledGuest;
using testing::ram_of;
using testing::RecordingSocketCalls;
using testing::same_ram;
using testing::TestStandby;
using testing::vmstate_of;

constexpr std::uint64_t kGeneration = 7, kPages = 12;
constexpr std::size_t kVmstateBytes = 150;

Bytes scrub_of(std::uint64_t first_page, const Bytes& page, std::uint64_t count = 1) {
  return encode_scrub(0, {first_page, count}, std::vector(count, hash_of_page(page.data())),
                      std::vector<bool>(count));
}

// One epoch's bytes of one connection: page 1 zero, page 2 one changed line of `value`, page 3 whole (no
// delta in epoch 0), and a hash of page 5, which has always been zero.
Bytes epoch_bytes(std::uint64_t epoch, unsigned value, bool with_vmstate = true) {
  RecordingSocketCalls recorder;
  StreamWriter writer(recorder, -1, kGeneration);
  const std::string vmstate = vmstate_of(epoch, kVmstateBytes);
  const Bytes page(kPageSize, std::byte(value));
  writer.begin_epoch(epoch);
  if (epoch != 0 && with_vmstate) {
    writer.send_vmstate(std::as_bytes(std::span(vmstate)));
    writer.send_scrub(scrub_of(5, Bytes(kPageSize)));
  }
  writer.entries().add_zero(0, 1);
  if (epoch != 0) writer.entries().add_delta(0, 2, page.data(), 1 << 5);
  writer.entries().add_raw(1, 3, page.data());
  writer.end_epoch(epoch == 0 ? 2 : 3);
  return recorder.bytes;
}

// The first copy's part of a connection that has no page to carry: what several connections carry is applied
// at the same time, so no page may be on two of them.
Bytes first_copy_without_pages() {
  RecordingSocketCalls recorder;
  StreamWriter writer(recorder, -1, kGeneration);
  writer.begin_epoch(0);
  writer.end_epoch(0);
  return recorder.bytes;
}

class Connection : public testing::TestConnection {
 public:
  Connection(StandbyEngine& engine, std::uint16_t index, std::uint16_t connections,
             std::uint64_t generation = kGeneration, const std::string& token = kTestToken)
      : TestConnection(engine, index, connections, generation, token) {}
};

class StandbyEngineTest : public ::testing::Test {
 protected:
  StandbyEngineTest() {
    guest_.scribble(0, kPageSize, 2 * kPageSize, 3);  // so that zeros show
  }

  // A session on one connection whose first copy has come.
  Connection begin() {
    standby_.forget_events();
    standby_.engine->open_session(kTestToken, kGeneration, 1);
    Connection connection(*standby_.engine, 0, 1);
    connection.send(epoch_bytes(0, 1));
    EXPECT_TRUE(standby_.wait_staged(0));
    before_ = ram_of(guest_);
    standby_.engine->open_epoch(1);
    return connection;
  }
  void expect_unchanged() { ASSERT_TRUE(same_ram(ram_of(guest_), before_)); }

  ModelledGuest guest_{{{kPages, true}, {kPages, false}}};
  TestStandby standby_{guest_};
  std::vector<Bytes> before_;
};

TEST_F(StandbyEngineTest, StagesThenCommitsRamAndDeviceState) {
  Connection connection = begin();
  const Bytes bytes = epoch_bytes(1, 9);
  connection.send(bytes);
  ASSERT_TRUE(standby_.wait_staged(1));
  const StagedCheckpoint staged = standby_.staged().back();
  EXPECT_EQ(staged.pages, 3u);
  EXPECT_EQ(staged.wire_bytes, bytes.size());
  EXPECT_EQ(staged.vmstate_bytes, kVmstateBytes);
  expect_unchanged();  // INVARIANT 2
  EXPECT_TRUE(standby_.mailbox_untouched());
  ASSERT_EQ(standby_.commit(1), "");
  std::vector<Bytes> expected = before_;
  std::memset(expected[0].data() + 2 * kPageSize + 5 * kLineSize, 9, kLineSize);
  std::memset(expected[1].data() + 3 * kPageSize, 9, kPageSize);
  EXPECT_TRUE(same_ram(ram_of(guest_), expected));
  EXPECT_EQ(standby_.mailbox_vmstate(kVmstateBytes), vmstate_of(1, kVmstateBytes));
  EXPECT_EQ(standby_.failures(), 0u);
}

TEST(StandbyEngine, LoadedStateLeavesRamAsCommitted) {
  ModelledGuest guest({{kPages, false}});
  TestStandby standby(guest, 0, {{0, 2 * kPageSize - 100, kPageSize}});
  standby.engine->open_session(kTestToken, kGeneration, 1);
  Connection connection(*standby.engine, 0, 1);
  RecordingSocketCalls recorder;
  StreamWriter writer(recorder, -1, kGeneration);
  for (const std::uint64_t epoch : {0, 1}) {
    writer.begin_epoch(epoch);
    const std::string vmstate = vmstate_of(epoch, kVmstateBytes);
    if (epoch == 1) writer.send_vmstate(std::as_bytes(std::span(vmstate)));
    const Bytes page(2 * kPageSize, std::byte(40 + epoch));
    writer.entries().add_raw(0, 1, page.data());
    writer.end_epoch(1);
    connection.send(std::exchange(recorder.bytes, {}));
    ASSERT_TRUE(standby.wait_staged(epoch));
    if (epoch == 0) standby.engine->open_epoch(1);
  }
  ASSERT_EQ(standby.commit(1), "");
  const std::vector<Bytes> committed = ram_of(guest);
  guest.scribble(0, 2 * kPageSize - 100, kPageSize, 77);  // what a reset does before a load
  ASSERT_FALSE(same_ram(ram_of(guest), committed));
  standby.engine->restore_preserved();
  EXPECT_TRUE(same_ram(ram_of(guest), committed));
}

TEST(StandbyEngine, PreservedRangeOutsideItsBlockIsRefused) {
  ModelledGuest guest({{kPages, false}});
  EXPECT_THROW(TestStandby(guest, 0, {{0, kPages * kPageSize - 10, 11}}), Error);
  EXPECT_THROW(TestStandby(guest, 0, {{1, 0, 1}}), Error);
}

TEST_F(StandbyEngineTest, EpochCutAnywhereChangesNothing) {
  const Bytes bytes = epoch_bytes(1, 9);
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  std::vector<std::size_t> lengths = {
      0, 1, 31, 32, 33, bytes.size() - 33, bytes.size() - 32, bytes.size() - 1};
  for (int i = 0; i < 60; ++i) lengths.push_back(random() % bytes.size());
  for (const std::size_t length : lengths) {
    Connection connection = begin();
    connection.send(std::span(bytes).first(length));
    connection.close();
    EXPECT_EQ(standby_.wait_failure().substr(0, 13), "ERR_COLO_LINK") << length;
    standby_.engine->close_session();
    EXPECT_FALSE(standby_.wait_staged(1));
    EXPECT_EQ(standby_.failures(), 1u);
    expect_unchanged();
    EXPECT_TRUE(standby_.mailbox_untouched());
    EXPECT_THROW(standby_.engine->commit(1, nullptr), Error);
  }
}

TEST_F(StandbyEngineTest, EveryFlippedBitIsNoticed) {
  const Bytes good = epoch_bytes(1, 9);
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  // One bit of each byte, except for the whole page, where ten must do.
  std::vector<std::size_t> bits;
  const std::size_t page_begin = good.size() - 64 - kPageSize;
  for (std::size_t at = 0; at < good.size(); ++at) {
    if (at < page_begin || at >= page_begin + kPageSize || random() % (kPageSize / 10) == 0)
      bits.push_back(at * 8 + random() % 8);
  }
  for (const std::size_t bit : bits) {
    Bytes bad = good;
    bad[bit / 8] ^= std::byte(1 << bit % 8);
    Connection connection = begin();
    connection.send(bad);
    connection.close();
    const std::string failure = standby_.wait_failure();
    ASSERT_NE(failure, "no failure") << "bit " << bit;
    ASSERT_FALSE(standby_.wait_staged(1)) << "bit " << bit << ": " << failure;
    if (bit % 64 == 0) expect_unchanged();
  }
  expect_unchanged();
}

TEST_F(StandbyEngineTest, FlippedBitInTheFirstCopyIsNoticedAtItsEnd) {
  Bytes bad = epoch_bytes(0, 1);
  bad[bad.size() - 100] ^= std::byte{1};
  standby_.engine->open_session(kTestToken, kGeneration, 1);
  Connection connection(*standby_.engine, 0, 1);
  connection.send(bad);
  EXPECT_NE(standby_.wait_failure().find("checksum"), std::string::npos);
  EXPECT_TRUE(standby_.staged().empty());
}

// What a frame says that no honest primary sends: each ends the session, with the reason.
TEST_F(StandbyEngineTest, RefusesFramesThatDoNotBelongHere) {
  const auto frame = [](FrameType type, std::uint64_t epoch, std::uint32_t length,
                        std::uint64_t generation = kGeneration) {
    const auto header = encode_frame_header({type, generation, epoch, length});
    Bytes bytes(header.begin(), header.end());
    bytes.resize(bytes.size() + length);
    return bytes;
  };
  const auto expect_refused = [&](const Bytes& bytes, const char* why) {
    Connection connection = begin();
    connection.send(bytes);
    EXPECT_NE(standby_.wait_failure().find(why), std::string::npos)
        << standby_.wait_failure() << " / " << why;
    expect_unchanged();
  };
  expect_refused(frame(FrameType::pages, 2, 16), "frame of epoch 2 while 1 is open");
  expect_refused(frame(FrameType::pages, 0, 16), "frame of epoch 0 while 1 is open");
  expect_refused(frame(FrameType::pages, 1, 16, kGeneration + 1),
                 "generation 8 in a session of generation 7");
  expect_refused(frame(FrameType::vmstate, 1, kVmstateBytesMax), "doesn't fit in the mailbox");
  expect_refused(frame(FrameType::vmstate, 1, 100), "not a QEMU stream");
  expect_refused(frame(FrameType::pages, 1, 16), "it has no pages");
  expect_refused(epoch_bytes(1, 9, false), "ends without device state");
  Bytes twice = epoch_bytes(1, 9);
  twice.resize(kFrameHeaderBytes + kVmstateBytes);
  const Bytes again = twice;
  twice.insert(twice.end(), again.begin(), again.end());
  expect_refused(twice, "device state twice");
  Bytes over = epoch_bytes(1, 9);
  const Bytes more = epoch_bytes(1, 9);
  over.insert(over.end(), more.begin(), more.end());
  Connection connection = begin();
  connection.send(over);
  EXPECT_NE(standby_.wait_failure().find("after the END"), std::string::npos);
}

TEST_F(StandbyEngineTest, DeviceStateInTheFirstCopyIsRefused) {
  standby_.engine->open_session(kTestToken, kGeneration, 1);
  Connection connection(*standby_.engine, 0, 1);
  const auto header = encode_frame_header({FrameType::vmstate, kGeneration, 0, 100});
  connection.send(header);
  EXPECT_NE(standby_.wait_failure().find("device state in epoch 0"), std::string::npos);
}

TEST_F(StandbyEngineTest, MorePagesThanTheGuestHasAreRefused) {
  RecordingSocketCalls recorder;
  StreamWriter writer(recorder, -1, kGeneration);
  writer.begin_epoch(1);
  for (std::uint64_t i = 0; i <= 2 * kPages; ++i) writer.entries().add_zero(0, i % 2);
  writer.send_gathered();
  Connection connection = begin();
  connection.send(recorder.bytes);
  EXPECT_NE(standby_.wait_failure().find("more pages than the guest"), std::string::npos);
}

TEST_F(StandbyEngineTest, ScrubIsRefusedWhereItDoesNotBelong) {
  const auto bytes_of = [](std::uint64_t epoch, unsigned frames) {
    RecordingSocketCalls recorder;
    StreamWriter writer(recorder, -1, kGeneration);
    writer.begin_epoch(epoch);
    for (unsigned i = 0; i < frames; ++i) writer.send_scrub(scrub_of(0, Bytes(kPageSize), kPages));
    return recorder.bytes;
  };
  {
    Connection connection = begin();
    connection.send(bytes_of(1, 3));
    EXPECT_NE(standby_.wait_failure().find("scrubs more pages than the guest has"), std::string::npos);
  }
  {
    Connection connection = begin();
    Bytes past_the_end = bytes_of(1, 1);
    past_the_end[kFrameHeaderBytes + 8] = std::byte{1};
    connection.send(past_the_end);
    EXPECT_NE(standby_.wait_failure().find("past the end of its RAM block"), std::string::npos);
  }
  standby_.forget_events();
  standby_.engine->open_session(kTestToken, kGeneration, 2);
  Connection zero(*standby_.engine, 0, 2), one(*standby_.engine, 1, 2);
  one.send(first_copy_without_pages());
  zero.send(epoch_bytes(0, 1));
  ASSERT_TRUE(standby_.wait_staged(0));
  standby_.engine->open_epoch(1);
  one.send(bytes_of(1, 1));
  EXPECT_NE(standby_.wait_failure().find("SCRUB belongs on connection 0"), std::string::npos);
  standby_.forget_events();
  standby_.engine->open_session(kTestToken, kGeneration, 1);
  Connection early(*standby_.engine, 0, 1);
  early.send(bytes_of(0, 1));
  EXPECT_NE(standby_.wait_failure().find("SCRUB in epoch 0"), std::string::npos);
}

// INVARIANT 8. The page's own epoch is no excuse: what was hashed is what RAM is after it.
TEST_F(StandbyEngineTest, CommitFailsWherePagesAreNotThePrimarys) {
  Connection connection = begin();
  connection.send(epoch_bytes(1, 9));
  ASSERT_TRUE(standby_.wait_staged(1));
  guest_.scribble(0, 5 * kPageSize + 4095, 1, 3);
  testing::Outcome<CommitResult> outcome;
  standby_.engine->commit(1, outcome.done());
  EXPECT_EQ(outcome.wait(), "ERR_COLO_SCRUB");
  EXPECT_NE(outcome.what().find("0x5000 of RAM block block0"), std::string::npos) << outcome.what();
  EXPECT_EQ(standby_.mailbox_vmstate(kVmstateBytes), vmstate_of(1, kVmstateBytes));
  guest_.scribble(0, 5 * kPageSize, kPageSize, 0);
  EXPECT_EQ(standby_.commit(1), "");
}

TEST(StandbyEngine, PeerThatExceedsTheStagingLimitIsRefused) {
  const ModelledGuest guest({{kPages, true}, {kPages, false}});
  TestStandby standby(guest, 5000);
  standby.engine->open_session(kTestToken, kGeneration, 1);
  Connection connection(*standby.engine, 0, 1);
  connection.send(epoch_bytes(0, 1));
  ASSERT_TRUE(standby.wait_staged(0));
  standby.engine->open_epoch(1);
  connection.send(epoch_bytes(1, 9));
  ASSERT_TRUE(standby.wait_staged(1));
  EXPECT_EQ(standby.commit(1), "");
  standby.engine->open_epoch(2);
  connection.send(epoch_bytes(2, 9));
  EXPECT_EQ(standby.wait_failure().substr(0, 22), "ERR_COLO_STAGING_LIMIT");
}

TEST_F(StandbyEngineTest, ConnectionsAreHeldAgainstTheSession) {
  StandbyEngine& engine = *standby_.engine;
  const auto refused = [&](std::uint16_t index, std::uint16_t connections, std::uint64_t generation,
                           const std::string& token) {
    try {
      Connection connection(engine, index, connections, generation, token);
    } catch (const Error& error) {
      EXPECT_STREQ(error.code(), "ERR_COLO_PEER");
      return std::string(error.what());
    }
    return std::string();
  };
  EXPECT_NE(refused(0, 2, kGeneration, kTestToken).find("no session"), std::string::npos);
  engine.open_session(kTestToken, kGeneration, 2);
  EXPECT_NE(refused(0, 2, kGeneration, "0123456789abcdeF").find("wrong token"), std::string::npos);
  EXPECT_NE(refused(0, 2, kGeneration - 1, kTestToken).find("wrong generation"), std::string::npos);
  EXPECT_NE(refused(0, 3, kGeneration, kTestToken).find("wrong number"), std::string::npos);
  Connection first(engine, 1, 2);
  EXPECT_NE(refused(1, 2, kGeneration, kTestToken).find("taken"), std::string::npos);
  EXPECT_THROW(engine.add_connection({}, "short"), Error);
  Connection second(engine, 0, 2);
  first.send(first_copy_without_pages());
  second.send(epoch_bytes(0, 1));
  EXPECT_TRUE(standby_.wait_staged(0));
}

TEST_F(StandbyEngineTest, EpochIsCompleteOnlyWithTheEndOfEveryConnection) {
  standby_.engine->open_session(kTestToken, kGeneration, 2);
  Connection zero(*standby_.engine, 0, 2), one(*standby_.engine, 1, 2);
  one.send(first_copy_without_pages());
  zero.send(epoch_bytes(0, 1));
  ASSERT_TRUE(standby_.wait_staged(0));
  standby_.engine->open_epoch(1);
  zero.send(epoch_bytes(1, 9));
  const Bytes rest = epoch_bytes(1, 9, false);
  one.send(std::span(rest).first(rest.size() - 1));
  EXPECT_THROW(standby_.engine->commit(1, nullptr), Error);
  EXPECT_EQ(standby_.staged().size(), 1u);
  one.send(std::span(rest).last(1));
  ASSERT_TRUE(standby_.wait_staged(1));
  EXPECT_EQ(standby_.staged().back().pages, 6u);
  EXPECT_EQ(standby_.staged().back().vmstate_bytes, kVmstateBytes);
}

TEST_F(StandbyEngineTest, OneFailedConnectionEndsTheOthersAndIsReportedOnce) {
  standby_.engine->open_session(kTestToken, kGeneration, 3);
  Connection zero(*standby_.engine, 0, 3), one(*standby_.engine, 1, 3);
  one.close();
  EXPECT_NE(standby_.wait_failure().find("bulk connection 1: the peer closed"), std::string::npos);
  Connection late(*standby_.engine, 2, 3);
  standby_.engine->close_session();
  EXPECT_EQ(standby_.failures(), 1u);
}

TEST_F(StandbyEngineTest, ClosingASessionIsNoFailureAndTheNextOneStartsAfresh) {
  for (int round = 0; round < 20; ++round) {
    Connection connection = begin();
    const Bytes bytes = epoch_bytes(1, 9);
    connection.send(std::span(bytes).first(static_cast<std::size_t>(round) * 10));
    standby_.engine->close_session();
    EXPECT_EQ(standby_.failures(), 0u);
    expect_unchanged();
  }
}

TEST_F(StandbyEngineTest, CommittedEpochOutlivesItsSessionAndCanBeFlushedAgain) {
  Connection connection = begin();
  connection.send(epoch_bytes(1, 9));
  ASSERT_TRUE(standby_.wait_staged(1));
  testing::Outcome<CommitResult> outcome;
  standby_.engine->commit(1, outcome.done());
  standby_.engine->close_session();
  ASSERT_EQ(outcome.wait(), "");
  const std::vector<Bytes> committed = ram_of(guest_);
  EXPECT_FALSE(same_ram(committed, before_));
  guest_.scribble(1, 3 * kPageSize, 10, 4);
  ASSERT_EQ(standby_.commit(1), "");
  EXPECT_TRUE(same_ram(ram_of(guest_), committed));
}

TEST_F(StandbyEngineTest, CommitOfALostGuestFails) {
  Connection connection = begin();
  connection.send(epoch_bytes(1, 9));
  ASSERT_TRUE(standby_.wait_staged(1));
  guest_.kill();
  EXPECT_EQ(standby_.commit(1), "ERR_COLO_GUEST_MEMORY");
  EXPECT_TRUE(standby_.mailbox_untouched());  // INVARIANT 6: device state comes after RAM, or not at all
}

TEST_F(StandbyEngineTest, OrderOfCallsIsAsserted) {
  EXPECT_DEATH(standby_.engine->open_epoch(1), "assertion failed");
  Connection connection = begin();
  EXPECT_DEATH(standby_.engine->open_epoch(2), "assertion failed");
}

}  // namespace
}  // namespace colo
