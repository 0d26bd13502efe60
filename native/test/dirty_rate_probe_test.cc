#include "../core/dirty_rate_probe.h"

#include <bit>
#include <random>
#include <set>

#include "../core/dirty_tracker.h"
#include "engine_harness.h"

namespace colo {
namespace {

using testing::ChildProcess;
using testing::has_userfaultfd_mappings;
using testing::ModelledGuest;
using testing::open_descriptors;
using testing::Outcome;
using testing::ram_of;

class DirtyRateProbeTest : public ::testing::Test {
 protected:
  DirtyRateOptions options(std::uint64_t sample_one_in) const {
    DirtyRateOptions result;
    result.pid = guest_.pid();
    result.blocks = guest_.blocks();
    result.threads = 2;
    result.sample_one_in = sample_one_in;
    return result;
  }

  static void begin(DirtyRateProbe& probe) {
    Outcome<> outcome;
    probe.begin(outcome.plain_done());
    ASSERT_EQ(outcome.wait(), "");
  }
  static DirtyRateRound watch(DirtyRateProbe& probe) {
    Outcome<DirtyRateRound> outcome;
    probe.watch(1, outcome.done());
    EXPECT_EQ(outcome.wait(), "");
    return outcome.result();
  }

  ModelledGuest guest_{{{400, true}, {300, false}}};
};

// What the codec makes of a page, the slow way.
struct Encoded {
  EntryKind kind;
  std::uint64_t bytes;  // without the header
};
std::optional<Encoded> encoded(const std::byte* now, const std::byte* before) {
  std::uint64_t lines = 0;
  bool zero = true;
  for (std::size_t i = 0; i < kPageSize; ++i) zero = zero && now[i] == std::byte{0};
  for (std::size_t line = 0; line < kPageSize; line += kLineSize)
    lines += std::memcmp(now + line, before + line, kLineSize) == 0 ? 0 : 1;
  if (lines == 0) return std::nullopt;
  if (zero) return Encoded{EntryKind::zero, 0};
  if (lines < kLinesPerPage) return Encoded{EntryKind::delta, 8 + lines * kLineSize};
  return Encoded{EntryKind::raw, kPageSize};
}

TEST_F(DirtyRateProbeTest, CountsAndEncodesAsACheckpointWould) {
  std::mt19937_64 random(7);
  guest_.live(random, 300);
  DirtyRateProbe probe(options(1));
  begin(probe);
  for (int round = 0; round < 30; ++round) {
    const auto before = ram_of(guest_);
    guest_.live(random, static_cast<unsigned>(random() % 100));
    const DirtyRateRound found = watch(probe);
    const auto now = ram_of(guest_);
    PageCounts counts;
    std::uint64_t bytes = 0, changed = 0;
    std::optional<EntryKind> last;  // of the page just before, where an entry can take this one in
    for (std::size_t block = 0; block < now.size(); ++block) {
      last.reset();
      for (std::size_t at = 0; at < now[block].size(); at += kPageSize) {
        const auto page = encoded(&now[block][at], &before[block][at]);
        const auto previous = std::exchange(last, page ? std::optional(page->kind) : std::nullopt);
        if (!page) continue;
        ++changed;
        const bool joined = page->kind != EntryKind::delta && previous == page->kind;
        bytes += page->bytes + (joined ? 0 : sizeof(EntryHeader));
        counts.zero += page->kind == EntryKind::zero ? 1 : 0;
        counts.delta += page->kind == EntryKind::delta ? 1 : 0;
        counts.raw += page->kind == EntryKind::raw ? 1 : 0;
      }
    }
    EXPECT_EQ(found.sampled_pages, found.dirty_pages);
    EXPECT_EQ(found.dirty_pages, changed + found.sampled.unchanged);
    EXPECT_EQ(found.sampled.zero, counts.zero);
    EXPECT_EQ(found.sampled.delta, counts.delta);
    EXPECT_EQ(found.sampled.raw, counts.raw);
    EXPECT_EQ(found.sampled_bytes, bytes);
  }
}

TEST_F(DirtyRateProbeTest, CountsPagesThatWereWrittenWithTheSameContent) {
  guest_.scribble(1, 10 * kPageSize, 5 * kPageSize, 3);
  DirtyRateProbe probe(options(1));
  begin(probe);
  guest_.scribble(1, 10 * kPageSize, 5 * kPageSize, 3);
  const DirtyRateRound round = watch(probe);
  EXPECT_EQ(round.dirty_pages, 5u);
  EXPECT_EQ(round.sampled.unchanged, 5u);
  EXPECT_EQ(round.sampled_bytes, 0u);
  EXPECT_EQ(watch(probe).dirty_pages, 0u);
}

TEST_F(DirtyRateProbeTest, SampleIsAShareOfWhatIsDirty) {
  DirtyRateProbe probe(options(10));
  begin(probe);
  guest_.scribble(0, 0, 400 * kPageSize, 9);
  guest_.scribble(1, 0, 300 * kPageSize, 9);
  const DirtyRateRound round = watch(probe);
  EXPECT_EQ(round.dirty_pages, 700u);
  EXPECT_EQ(round.sampled_pages, 70u);
  EXPECT_EQ(round.sampled.raw, 70u);
}

std::string attach_error(const GuestMemory& memory) {
  try {
    make_userfaultfd_tracker(memory);
    return "none";
  } catch (const Error& error) {
    return error.code();
  }
}

TEST_F(DirtyRateProbeTest, LeavesTheProcessAsItWas) {
  const auto descriptors = open_descriptors(guest_.pid());
  const GuestMemory memory(guest_.pid(), guest_.blocks());
  for (int i = 0; i < 3; ++i) {
    DirtyRateProbe probe(options(16));
    begin(probe);
    watch(probe);
    EXPECT_EQ(open_descriptors(guest_.pid()), descriptors);
    EXPECT_TRUE(has_userfaultfd_mappings(guest_.pid()));
    EXPECT_EQ(attach_error(memory), "ERR_COLO_UFFD_BUSY");
    probe.close();
    EXPECT_FALSE(has_userfaultfd_mappings(guest_.pid()));
    EXPECT_EQ(open_descriptors(guest_.pid()), descriptors);
  }
  const auto tracker = make_userfaultfd_tracker(memory);
  EXPECT_THROW(DirtyRateProbe{options(16)}, Error);
}

TEST_F(DirtyRateProbeTest, KilledInTheMiddleItLeavesTheProcessAsItWas) {
  const auto descriptors = open_descriptors(guest_.pid());
  for (int i = 0; i < 3; ++i) {
    ChildProcess agent([&](int socket) {
      DirtyRateProbe probe(options(16));
      Outcome<> begun;
      probe.begin(begun.plain_done());
      if (begun.wait() != "") return 1;
      Outcome<DirtyRateRound> never;
      probe.watch(600'000'000, never.done());
      char end;
      return ::send(socket, "r", 1, 0) == 1 && ::recv(socket, &end, 1, 0) == 0 ? 0 : 1;
    });
    agent.receive<char>();
    EXPECT_TRUE(has_userfaultfd_mappings(guest_.pid()));
    agent.kill();
    EXPECT_FALSE(has_userfaultfd_mappings(guest_.pid()));
    EXPECT_EQ(open_descriptors(guest_.pid()), descriptors);
    guest_.scribble(0, 0, 400 * kPageSize, 9);
  }
}

TEST_F(DirtyRateProbeTest, CloseEndsAWindowAtOnce) {
  DirtyRateProbe probe(options(16));
  Outcome<DirtyRateRound> early;
  probe.watch(1, early.done());
  EXPECT_EQ(early.wait(), "ERR_COLO_ARGUMENT");
  begin(probe);
  Outcome<DirtyRateRound> outcome;
  probe.watch(600'000'000, outcome.done());
  probe.close();
  EXPECT_EQ(outcome.wait(), "ERR_COLO_CLOSED");
  EXPECT_THROW(probe.begin(nullptr), Error);
}

TEST_F(DirtyRateProbeTest, ReportsThatTheProcessIsGone) {
  DirtyRateProbe probe(options(16));
  begin(probe);
  guest_.kill();
  Outcome<DirtyRateRound> outcome;
  probe.watch(1, outcome.done());
  // Whichever notices first: its page tables go before its process does.
  EXPECT_TRUE(outcome.wait() == "ERR_COLO_TRACKER" || outcome.wait() == "ERR_COLO_GUEST_MEMORY")
      << outcome.wait();
}

}  // namespace
}  // namespace colo
