// INVARIANT 8, from guest to guest: what the tracker missed, or the standby lost, is found; and nothing else.
#include <gtest/gtest.h>

#include "primary_harness.h"

namespace colo {
namespace {

using testing::capture;
using testing::connect;
using testing::kGeneration;
using testing::kTestToken;
using testing::Listener;
using testing::ModelledGuest;
using testing::options_for;
using testing::protect;
using testing::ram_of;
using testing::same_ram;
using testing::sync;
using testing::TestStandby;
using testing::Tracker;
using testing::transmit;
using testing::vmstate_of;

constexpr std::uint64_t kPages = 600 + 250 + 1;
constexpr std::uint64_t kSlicePages = 64;

struct Variant {
  const char* name;
  Tracker tracker;
  bool shadow;
  std::uint64_t slice_pages;
};

class EnginesScrubTest : public ::testing::TestWithParam<Variant> {
 protected:
  PrimaryOptions options() const {
    PrimaryOptions options = options_for(primary_guest_, GetParam().tracker, GetParam().shadow);
    options.scrub_slice_bytes = GetParam().slice_pages * kPageSize;
    return options;
  }

  void begin_session(PrimaryEngine& engine) {
    standby_.forget_events();
    standby_.engine->open_session(kTestToken, kGeneration, 2);
    ASSERT_EQ(protect(engine), "");
    ASSERT_EQ(connect(engine, listener_.port, 2), "");
    primary_guest_.live(random_, 3);
    ASSERT_EQ(sync(engine), "");
    ASSERT_TRUE(standby_.wait_staged(0));
    epoch_ = 0;
  }

  void end_session(PrimaryEngine& engine) {
    engine.disconnect();
    standby_.wait_failure();
    standby_.engine->close_session();
  }

  // The next checkpoint, up to its commit; gives the commit's error code.
  std::string checkpoint(PrimaryEngine& engine) {
    EXPECT_EQ(capture(engine, ++epoch_), "");
    at_capture_ = primary_guest_.model();
    primary_guest_.live(random_, 2);
    standby_.engine->open_epoch(epoch_);
    EXPECT_EQ(transmit(engine, epoch_, vmstate_of(epoch_, 100), &sent_), "");
    pages_ += sent_.scrub_checked_pages + sent_.scrub_skipped_pages;
    EXPECT_EQ(pages_ / kPages, sent_.scrub_rounds);
    EXPECT_TRUE(standby_.wait_staged(epoch_)) << standby_.wait_failure();
    testing::Outcome<CommitResult> outcome;
    standby_.engine->commit(epoch_, outcome.done());
    const std::string code = outcome.wait();
    finding_ = outcome.what();
    EXPECT_EQ(outcome.result().scrubbed_pages, code.empty() ? sent_.scrub_checked_pages : 0);
    return code;
  }

  // Checkpoints until one fails, or all of RAM has been gone through; a round that had begun doesn't count.
  std::string checkpoints_for_a_round(PrimaryEngine& engine) {
    const std::uint64_t began = sent_.scrub_rounds;
    do {
      primary_guest_.live(random_, 2);
      const std::string code = checkpoint(engine);
      if (!code.empty()) return code;
    } while (sent_.scrub_rounds < began + 2);
    return "";
  }

  // A few bytes of a page, changed by somebody else than its guest.
  static void write_behind(const ModelledGuest& guest, std::size_t block, std::uint64_t page) {
    const GuestMemory memory(guest.pid(), guest.blocks());
    std::byte changed[3];
    memory.read(block, page * kPageSize + 1000, changed);
    for (std::byte& byte : changed) byte ^= std::byte{1};
    const MemoryWrite write{page * kPageSize + 1000, changed, sizeof changed};
    memory.write(block, {&write, 1});
  }

  void expect_finding(std::size_t block, const std::string& address) {
    EXPECT_NE(finding_.find("address " + address + " of RAM block block" + std::to_string(block) + " "),
              std::string::npos)
        << finding_;
  }

  const unsigned seed_ = std::random_device{}();
  ::testing::ScopedTrace trace_{__FILE__, __LINE__, "seed " + std::to_string(seed_)};
  std::mt19937_64 random_{seed_};
  ModelledGuest primary_guest_{{{600, true}, {250, false}, {1, false}}};
  ModelledGuest standby_guest_{{{600, false}, {250, true}, {1, true}}};
  TestStandby standby_{standby_guest_};
  Listener listener_{[this](UniqueFd fd, std::string preface) {
    standby_.engine->add_connection(Connection(std::move(fd)), preface);
  }};
  std::uint64_t epoch_ = 0, pages_ = 0;
  TransmitResult sent_;
  std::string finding_;
  std::vector<testing::Bytes> at_capture_;
};

// Captured and given up, or its device state missing: neither may leave a hash behind that is asked about
// later.
TEST_P(EnginesScrubTest, NothingIsFoundWhereNothingIsWrong) {
  PrimaryEngine engine(options());
  primary_guest_.live(random_, 300);
  for (int session = 0; session < 3; ++session) {
    begin_session(engine);
    for (int i = 0; i < 30; ++i) {
      primary_guest_.live(random_, static_cast<unsigned>(random_() % 40));
      if (random_() % 4 == 0) {
        ASSERT_EQ(capture(engine, epoch_ + 1), "");
        if (random_() % 2 == 0) {
          ASSERT_EQ(transmit(engine, epoch_ + 1, ""), "ERR_COLO_VMSTATE");
        }
        engine.abandon();
        primary_guest_.live(random_, 5);
      }
      ASSERT_EQ(checkpoint(engine), "") << finding_;
      ASSERT_TRUE(same_ram(ram_of(standby_guest_), at_capture_));
    }
    end_session(engine);
    primary_guest_.live(random_, 20);
  }
  begin_session(engine);
  EXPECT_EQ(checkpoints_for_a_round(engine), "") << finding_;
}

TEST_P(EnginesScrubTest, PageThatTheStandbyLostIsFoundAndAFullCopyMendsIt) {
  PrimaryEngine engine(options());
  primary_guest_.live(random_, 100);
  const std::pair<std::size_t, std::uint64_t> places[] = {{0, 599}, {1, 17}};
  for (const auto& [block, page] : places) {
    begin_session(engine);
    ASSERT_EQ(checkpoint(engine), "");
    // The guest may write the page itself before it is found, which mends it.
    std::string code;
    for (int attempt = 0; attempt < 20 && code.empty(); ++attempt) {
      write_behind(standby_guest_, block, page);
      code = checkpoints_for_a_round(engine);
    }
    ASSERT_EQ(code, "ERR_COLO_SCRUB");
    char address[32];
    std::snprintf(address, sizeof address, "0x%llx", static_cast<unsigned long long>(page * kPageSize));
    expect_finding(block, address);
    EXPECT_EQ(standby_.mailbox_vmstate(100), vmstate_of(epoch_, 100));  // all the rest is of this epoch
    end_session(engine);
  }
  begin_session(engine);
  EXPECT_EQ(checkpoints_for_a_round(engine), "") << finding_;
  EXPECT_TRUE(same_ram(ram_of(standby_guest_), at_capture_));
}

INSTANTIATE_TEST_SUITE_P(
    Variants, EnginesScrubTest,
    ::testing::Values(Variant{"compare", Tracker::compare, true, kSlicePages},
                      Variant{"userfaultfd", Tracker::userfaultfd, true, kSlicePages},
                      Variant{"userfaultfd_without_shadow", Tracker::userfaultfd, false, kSlicePages},
                      Variant{"userfaultfd_all_of_ram", Tracker::userfaultfd, true, 1u << 20}),
    [](const auto& tested) { return std::string(tested.param.name); });

using EnginesMissedWriteTest = EnginesScrubTest;

// Through another mapping of the shared backend, where userfaultfd sees nothing.
TEST_P(EnginesMissedWriteTest, IsFoundWithinARound) {
  PrimaryEngine engine(options());
  primary_guest_.live(random_, 100);
  begin_session(engine);
  ASSERT_EQ(checkpoint(engine), "");
  std::string code;
  for (int attempt = 0; attempt < 20 && code.empty(); ++attempt) {
    write_behind(primary_guest_, 0, 123);
    code = checkpoints_for_a_round(engine);
  }
  ASSERT_EQ(code, "ERR_COLO_SCRUB");
  expect_finding(0, "0x7b000");
  end_session(engine);
}

INSTANTIATE_TEST_SUITE_P(Variants, EnginesMissedWriteTest,
                         ::testing::Values(Variant{"userfaultfd", Tracker::userfaultfd, true, kSlicePages},
                                           Variant{"userfaultfd_without_shadow", Tracker::userfaultfd, false,
                                                   kSlicePages}),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(EnginesScrub, OffMeansOff) {
  ModelledGuest guest({{50, false}});
  const ModelledGuest standby_guest({{50, false}});
  TestStandby standby(standby_guest);
  const Listener listener([&](UniqueFd fd, std::string preface) {
    standby.engine->add_connection(Connection(std::move(fd)), preface);
  });
  PrimaryEngine engine(options_for(guest));
  standby.engine->open_session(kTestToken, kGeneration, 1);
  ASSERT_EQ(protect(engine), "");
  ASSERT_EQ(connect(engine, listener.port, 1), "");
  ASSERT_EQ(sync(engine), "");
  ASSERT_TRUE(standby.wait_staged(0));
  for (std::uint64_t epoch = 1; epoch <= 3; ++epoch) {
    ASSERT_EQ(capture(engine, epoch), "");
    standby.engine->open_epoch(epoch);
    TransmitResult sent;
    ASSERT_EQ(transmit(engine, epoch, vmstate_of(epoch, 50), &sent), "");
    EXPECT_EQ(sent.scrub_checked_pages + sent.scrub_skipped_pages + sent.scrub_rounds, 0u);
    ASSERT_TRUE(standby.wait_staged(epoch));
    CommitResult commit;
    ASSERT_EQ(standby.commit(epoch, &commit), "");
    EXPECT_EQ(commit.scrubbed_pages, 0u);
  }
}

}  // namespace
}  // namespace colo
