#include "../core/dirty_tracker.h"

#include <algorithm>
#include <memory>
#include <random>
#include <string>

#include "../core/error.h"
#include "child_guest.h"

namespace colo {
namespace {

using testing::Backing;
using testing::BlockSpec;
using testing::ChildGuest;
using testing::ChildProcess;
using testing::has_userfaultfd_mappings;
using testing::open_descriptors;

std::vector<DirtyBitmap> clean_bitmaps(const GuestMemory& memory) {
  std::vector<DirtyBitmap> bitmaps;
  for (std::size_t block = 0; block < memory.block_count(); ++block)
    bitmaps.emplace_back(memory.block(block).pages());
  return bitmaps;
}

std::vector<std::vector<PageRun>> runs_of(const std::vector<DirtyBitmap>& bitmaps) {
  std::vector<std::vector<PageRun>> runs(bitmaps.size());
  for (std::size_t block = 0; block < bitmaps.size(); ++block) bitmaps[block].append_runs(runs[block]);
  return runs;
}

// A guest, its tracker and what the tracker must report.
struct Tracked {
  ChildGuest guest;
  GuestMemory memory;
  Shadow shadow;
  std::unique_ptr<DirtyTracker> tracker;
  std::vector<DirtyBitmap> expected;
  std::mt19937 random{11};

  Tracked(TrackerKind kind, const std::vector<BlockSpec>& blocks, uid_t uid = 0)
      : guest(blocks, uid), memory(guest.pid(), guest.blocks()), shadow(memory) {
    for (std::size_t block = 0; block < blocks.size(); ++block)
      guest.write(block, 0, blocks[block].pages, 1000);
    update_shadow();
    tracker = kind == TrackerKind::userfaultfd ? make_userfaultfd_tracker(memory)
                                               : make_compare_tracker(memory, shadow);
    EXPECT_EQ(tracker->kind(), kind);
    expected = clean_bitmaps(memory);
  }

  // As the encoder does when a checkpoint has been sent.
  void update_shadow() {
    for (std::size_t block = 0; block < memory.block_count(); ++block) {
      memory.read(block, 0, {shadow.page(block, 0), memory.block(block).size});
    }
  }

  // The guest writes some runs of pages; with huge pages, whole huge pages are expected.
  void write_at_random(std::uint64_t seed) {
    for (std::size_t block = 0; block < memory.block_count(); ++block) {
      const std::uint64_t pages = memory.block(block).pages(),
                          group = memory.page_size_bytes(block) / kPageSize;
      for (std::uint64_t i = random() % 60; i > 0; --i) {
        const std::uint64_t first = random() % pages;
        const std::uint64_t count =
            std::min<std::uint64_t>(1 + random() % (i % 8 == 0 ? 200 : 2), pages - first);
        if (i % 2 == 0) {
          guest.write(block, first, count, seed);
        } else {
          guest.write_by_kernel(block, first, count, seed);
        }
        const std::uint64_t begin = first / group * group, end = (first + count + group - 1) / group * group;
        expected[block].set(begin, std::min(end, pages) - begin);
      }
    }
  }

  void expect_collected(WorkerPool& pool) {
    auto dirty = clean_bitmaps(memory);
    tracker->collect(dirty, pool);
    EXPECT_EQ(runs_of(dirty), runs_of(expected));
    for (DirtyBitmap& bitmap : expected) bitmap.clear();
  }
};

struct Case {
  std::string name;
  TrackerKind kind;
  std::vector<BlockSpec> blocks;
  uid_t uid;
  unsigned threads;
};

class DirtyTrackerOf : public ::testing::TestWithParam<Case> {};

TEST_P(DirtyTrackerOf, ReportsWhatWasWrittenAndNothingElse) {
  Tracked tracked(GetParam().kind, GetParam().blocks, GetParam().uid);
  WorkerPool pool(GetParam().threads);
  tracked.tracker->protect_all();
  if (GetParam().kind == TrackerKind::compare) {
    for (DirtyBitmap& bitmap : tracked.expected) bitmap.set_all();
    tracked.expect_collected(pool);
  }
  for (std::uint64_t epoch = 0; epoch < 8; ++epoch) {
    tracked.write_at_random(epoch);
    tracked.expect_collected(pool);
    tracked.update_shadow();
    tracked.expect_collected(pool);  // an idle epoch
  }
}

// More than one chunk of either tracker, and the last one not a whole one.
const std::vector<BlockSpec> kMixed = {
    {Backing::memfd, 17'001}, {Backing::private_anonymous, 18'000}, {Backing::shared_anonymous, 77}};

INSTANTIATE_TEST_SUITE_P(
    Kinds, DirtyTrackerOf,
    ::testing::Values(Case{"userfaultfd", TrackerKind::userfaultfd, kMixed, 0, 1},
                      Case{"userfaultfd_of_another_user", TrackerKind::userfaultfd, kMixed, 65534, 1},
                      Case{"userfaultfd_in_parallel", TrackerKind::userfaultfd, kMixed, 0, 3},
                      Case{"compare", TrackerKind::compare, kMixed, 0, 1},
                      Case{"compare_of_another_user", TrackerKind::compare, kMixed, 65534, 1},
                      Case{"compare_in_parallel", TrackerKind::compare, kMixed, 0, 3}),
    [](const auto& param) { return param.param.name; });

TEST(UserfaultfdTracker, OfHugePages) {
  const testing::HugePages pages(16);
  if (!pages.granted()) {
    std::puts("this kernel grants no huge pages: hugetlbfs is not tested here");
    return;
  }
  for (const Backing backing : {Backing::hugetlb_memfd, Backing::hugetlb_private}) {
    Tracked tracked(TrackerKind::userfaultfd, {{backing, 6 * 512 + 100}});
    WorkerPool pool(1);
    tracked.tracker->protect_all();
    for (std::uint64_t epoch = 0; epoch < 10; ++epoch) {
      tracked.write_at_random(epoch);
      tracked.expect_collected(pool);
      tracked.expect_collected(pool);
    }
    // Pages that nobody has written to yet: not reported, and still zero on both sides.
    ChildGuest sparse({{backing, 4 * 512}});
    const GuestMemory memory(sparse.pid(), sparse.blocks());
    const auto tracker = make_userfaultfd_tracker(memory);
    tracker->protect_all();
    auto dirty = clean_bitmaps(memory);
    tracker->collect(dirty, pool);
    EXPECT_EQ(dirty[0].count(), 0u);
    sparse.write(0, 600, 1, 1);
    tracker->collect(dirty, pool);
    EXPECT_EQ(runs_of(dirty)[0], (std::vector<PageRun>{{512, 512}}));
  }
}

// Pages that don't exist when they are protected: a write is seen all the same. What was never written may be
// reported (a page table appears with a write to one of its pages, and the kernel takes its other pages for
// written), but once only.
TEST(UserfaultfdTracker, SeesWritesToPagesThatDidNotExist) {
  for (const Backing backing : {Backing::memfd, Backing::shared_anonymous, Backing::private_anonymous}) {
    constexpr std::uint64_t kPages = 8 * 512;
    ChildGuest guest({{backing, kPages}});
    const GuestMemory memory(guest.pid(), guest.blocks());
    const auto tracker = make_userfaultfd_tracker(memory);
    WorkerPool pool(1);
    guest.write(0, 0, 3, 1);
    tracker->protect_all();
    std::mt19937 random(5);
    for (int epoch = 0; epoch < 20; ++epoch) {
      std::vector<std::uint64_t> written;
      for (int i = 0; i < 10; ++i) written.push_back(random() % kPages);
      guest.touch(0, random() % kPages, 1);
      for (const std::uint64_t page : written) guest.write(0, page, 1, 2);
      auto dirty = clean_bitmaps(memory);
      tracker->collect(dirty, pool);
      for (const std::uint64_t page : written) EXPECT_TRUE(dirty[0].test(page)) << page;
      auto idle = clean_bitmaps(memory);
      tracker->collect(idle, pool);
      EXPECT_EQ(idle[0].count(), 0u);
    }
  }
}

// More dirty runs than one system call reports, with gaps too wide to be protected together and such that are
// not.
TEST(UserfaultfdTracker, ReportsAnyNumberOfRuns) {
  for (const std::uint64_t gap : {2u, 256u, 257u}) {
    // Half a gigabyte: every page exists, but nobody needs to look at its content.
    ChildGuest guest({{Backing::memfd, 520 * gap}});
    guest.touch(0, 0, 520 * gap);
    const GuestMemory memory(guest.pid(), guest.blocks());
    const auto tracker = make_userfaultfd_tracker(memory);
    WorkerPool pool(1);
    tracker->protect_all();
    std::vector<PageRun> expected;
    for (std::uint64_t page = 0; page < 520 * gap; page += gap) {
      guest.write(0, page, 1, 1);
      expected.push_back({page, 1});
    }
    auto dirty = clean_bitmaps(memory);
    tracker->collect(dirty, pool);
    EXPECT_EQ(runs_of(dirty)[0], expected);
    auto idle = clean_bitmaps(memory);
    tracker->collect(idle, pool);
    EXPECT_EQ(idle[0].count(), 0u);
  }
}

// INVARIANT 3: what collect() reports is added to what is dirty already, as after a checkpoint that failed.
TEST(DirtyTracker, KeepsWhatIsDirtyAlready) {
  for (const TrackerKind kind : {TrackerKind::userfaultfd, TrackerKind::compare}) {
    Tracked tracked(kind, {{Backing::memfd, 100}});
    WorkerPool pool(1);
    if (kind == TrackerKind::userfaultfd) tracked.tracker->protect_all();
    auto dirty = clean_bitmaps(tracked.memory);
    dirty[0].set(90, 2);
    tracked.guest.write(0, 10, 1, 1);
    tracked.tracker->collect(dirty, pool);
    EXPECT_EQ(runs_of(dirty)[0], (std::vector<PageRun>{{10, 1}, {90, 2}}));
  }
}

TEST(DirtyTracker, ReportsThatTheProcessIsGone) {
  for (const TrackerKind kind : {TrackerKind::userfaultfd, TrackerKind::compare}) {
    for (const Backing backing : {Backing::memfd, Backing::private_anonymous}) {
      Tracked tracked(kind, {{backing, 100}});
      WorkerPool pool(1);
      if (kind == TrackerKind::userfaultfd) tracked.tracker->protect_all();
      tracked.guest.process().kill();
      auto dirty = clean_bitmaps(tracked.memory);
      EXPECT_THROW(tracked.tracker->collect(dirty, pool), Error);
    }
  }
}

std::string attach_error(const GuestMemory& memory) {
  try {
    make_userfaultfd_tracker(memory);
    return "none";
  } catch (const Error& error) {
    return error.code();
  }
}

TEST(UserfaultfdTracker, LeavesTheProcessAsItWas) {
  Tracked tracked(TrackerKind::compare, kMixed, 65534);
  const auto descriptors = open_descriptors(tracked.guest.pid());
  for (int i = 0; i < 3; ++i) {
    const auto tracker = make_userfaultfd_tracker(tracked.memory);
    tracker->protect_all();
    EXPECT_EQ(open_descriptors(tracked.guest.pid()), descriptors);
    EXPECT_TRUE(has_userfaultfd_mappings(tracked.guest.pid()));
  }
  EXPECT_EQ(open_descriptors(tracked.guest.pid()), descriptors);
  EXPECT_FALSE(has_userfaultfd_mappings(tracked.guest.pid()));
  tracked.guest.write(0, 0, 100, 1);  // and it can write
}

TEST(UserfaultfdTracker, TwoAtOnceAreRefused) {
  Tracked tracked(TrackerKind::userfaultfd, {{Backing::memfd, 100}, {Backing::private_anonymous, 100}});
  EXPECT_EQ(attach_error(tracked.memory), "ERR_COLO_UFFD_BUSY");
  tracked.tracker.reset();
  EXPECT_EQ(attach_error(tracked.memory), "none");
}

// INVARIANT 7: the protection ends with the agent, however it ends.
TEST(UserfaultfdTracker, EndsWithAnAgentThatIsKilled) {
  ChildGuest guest({{Backing::memfd, 2000}, {Backing::private_anonymous, 2000}});
  const GuestMemory memory(guest.pid(), guest.blocks());
  const auto descriptors = open_descriptors(guest.pid());
  for (int i = 0; i < 3; ++i) {
    ChildProcess agent([&](int socket) {
      const auto tracker = make_userfaultfd_tracker(memory);
      tracker->protect_all();
      char end;
      return ::send(socket, "r", 1, 0) == 1 && ::recv(socket, &end, 1, 0) == 0 ? 0 : 1;
    });
    agent.receive<char>();
    EXPECT_EQ(attach_error(memory), "ERR_COLO_UFFD_BUSY");
    EXPECT_TRUE(has_userfaultfd_mappings(guest.pid()));
    agent.kill();
    EXPECT_FALSE(has_userfaultfd_mappings(guest.pid()));
    EXPECT_EQ(open_descriptors(guest.pid()), descriptors);
    guest.write(0, 0, 2000, 1);
    EXPECT_EQ(attach_error(memory), "none");
  }
}

TEST(UserfaultfdTracker, ReportsThatItIsNotPermitted) {
  ChildGuest guest({{Backing::memfd, 100}});
  const GuestMemory memory(guest.pid(), guest.blocks());
  ChildProcess unprivileged([&](int) {
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) return 2;
    // Reading the maps is refused already; the tracker reports it in its own terms.
    return attach_error(memory) == "ERR_COLO_UFFD_DENIED" ? 0 : 1;
  });
  EXPECT_EQ(unprivileged.wait(), 0);
  ::kill(guest.pid(), SIGKILL);
  ASSERT_TRUE(
      testing::wait_until([&] { return testing::status_field(guest.pid(), "State").starts_with("Z"); }));
  EXPECT_EQ(attach_error(memory), "ERR_COLO_PROCESS");
  guest.process().wait();
  EXPECT_EQ(attach_error(memory), "ERR_COLO_PROCESS");
}

// An area that has lost its protection is an error and not a clean bill. INVARIANT 3: what was collected
// before the error came is reported.
TEST(UserfaultfdTracker, NoticesThatItsProtectionIsGone) {
  Tracked tracked(TrackerKind::userfaultfd, {{Backing::memfd, 100}, {Backing::private_anonymous, 100}});
  tracked.tracker->protect_all();
  tracked.guest.write(0, 5, 1, 1);
  tracked.guest.remap(1, 50, 1);
  WorkerPool pool(1);
  auto dirty = clean_bitmaps(tracked.memory);
  EXPECT_THROW(tracked.tracker->collect(dirty, pool), Error);
  EXPECT_EQ(runs_of(dirty)[0], (std::vector<PageRun>{{5, 1}}));
}

// INVARIANT 3 without the help of INVARIANT 5: a write at any moment of a collection is reported by it or by
// a later one.
TEST(UserfaultfdTracker, LosesNothingOfAGuestThatRuns) {
  for (const Backing backing : {Backing::memfd, Backing::private_anonymous}) {
    constexpr std::uint64_t kPages = 3000;
    Tracked tracked(TrackerKind::userfaultfd, {{backing, kPages}});
    WorkerPool pool(1);
    tracked.tracker->protect_all();
    std::vector<std::byte> copy(kPages * kPageSize), now(kPages * kPageSize);
    tracked.memory.read(0, 0, copy);
    const auto collect_and_copy = [&] {
      auto dirty = clean_bitmaps(tracked.memory);
      tracked.tracker->collect(dirty, pool);
      std::vector<PageRun> runs;
      dirty[0].append_runs(runs);
      for (const PageRun& run : runs) {
        tracked.memory.read(0, run.first * kPageSize, {&copy[run.first * kPageSize], run.count * kPageSize});
      }
    };
    tracked.guest.start_writing(0);
    for (int i = 0; i < 200; ++i) collect_and_copy();
    tracked.guest.finish_writing();
    collect_and_copy();
    tracked.memory.read(0, 0, now);
    EXPECT_TRUE(now == copy);
  }
}

}  // namespace
}  // namespace colo
