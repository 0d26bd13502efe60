#include "../core/guest_memory.h"

#include <random>

#include "../core/error.h"
#include "../core/process_vm.h"
#include "child_guest.h"

namespace colo {
namespace {

using testing::Backing;
using testing::ChildGuest;
using testing::ChildProcess;

std::vector<std::byte> expected_pages(std::uint64_t first, std::uint64_t count, std::uint64_t seed) {
  std::vector<std::byte> bytes(count * kPageSize);
  for (std::uint64_t i = 0; i < count; ++i) ChildGuest::fill(&bytes[i * kPageSize], first + i, seed);
  return bytes;
}

std::string error_code(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  return "none";
}

struct Kind {
  Backing backing;
  MemoryAccess access;
  uid_t uid;
};

class GuestMemoryOf : public ::testing::TestWithParam<Kind> {};

TEST_P(GuestMemoryOf, ReadsAndWritesWhatTheProcessSees) {
  constexpr std::uint64_t kPages = 3000;
  ChildGuest guest({{GetParam().backing, 16}, {GetParam().backing, kPages}}, GetParam().uid);
  const GuestMemory memory(guest.pid(), guest.blocks());
  EXPECT_EQ(memory.pid(), guest.pid());
  ASSERT_EQ(memory.block_count(), 2u);
  EXPECT_EQ(memory.total_bytes(), (kPages + 16) * kPageSize);
  EXPECT_EQ(memory.page_size_bytes(1), kPageSize);
  ASSERT_EQ(memory.access(1), GetParam().access);
  EXPECT_EQ(memory.mapped(1) != nullptr, GetParam().access == MemoryAccess::mapped);

  guest.write(1, 0, kPages, 5);
  std::vector<PageRun> runs;  // more than one system call takes
  std::vector<std::byte> expected;
  for (std::uint64_t page = 0; page < kPages; page += 2) {
    runs.push_back({page, 1});
    const auto bytes = expected_pages(page, 1, 5);
    expected.insert(expected.end(), bytes.begin(), bytes.end());
  }
  std::vector<std::byte> read(expected.size());
  memory.read_pages(1, runs, read.data());
  EXPECT_EQ(read, expected);

  std::vector<std::byte> piece(10'000);
  memory.read(1, 12'345, piece);
  const auto all = expected_pages(0, kPages, 5);
  EXPECT_TRUE(std::equal(piece.begin(), piece.end(), all.begin() + 12'345));

  // Written in small pieces out of order, over each other, the last one counts.
  const auto wanted = expected_pages(0, kPages, 6);
  std::vector<MemoryWrite> writes{{0, all.data(), 5 * kPageSize}};
  for (std::uint64_t offset = 0; offset < wanted.size(); offset += 1024)
    writes.push_back({offset, &wanted[offset], 1024});
  std::shuffle(writes.begin() + 1, writes.end(), std::mt19937(1));
  memory.write(1, writes);
  EXPECT_TRUE(guest.holds(1, 0, kPages, 6));
}

INSTANTIATE_TEST_SUITE_P(Kinds, GuestMemoryOf,
                         ::testing::Values(Kind{Backing::memfd, MemoryAccess::mapped, 0},
                                           Kind{Backing::memfd, MemoryAccess::mapped, 65534},
                                           Kind{Backing::shared_anonymous, MemoryAccess::mapped, 0},
                                           Kind{Backing::private_anonymous, MemoryAccess::remote, 0},
                                           Kind{Backing::private_anonymous, MemoryAccess::remote, 65534}));

TEST(GuestMemory, OfHugePages) {
  const testing::HugePages pages(8);
  if (!pages.granted()) {
    std::puts("this kernel grants no huge pages: hugetlbfs is not tested here");
    return;
  }
  for (const Backing backing : {Backing::hugetlb_memfd, Backing::hugetlb_private}) {
    constexpr std::uint64_t kPages = 700;  // ends inside its second huge page
    ChildGuest guest({{backing, kPages}});
    guest.write(0, 0, kPages, 1);
    const GuestMemory memory(guest.pid(), guest.blocks());
    EXPECT_EQ(memory.page_size_bytes(0), testing::kHugePageBytes);
    EXPECT_EQ(memory.access(0),
              backing == Backing::hugetlb_memfd ? MemoryAccess::mapped : MemoryAccess::remote);
    const auto expected = expected_pages(0, kPages, 1);
    std::vector<std::byte> read(expected.size());
    memory.read(0, 0, read);
    EXPECT_EQ(read, expected);
  }
}

// A block that several mappings make up, the second one of another file: its order is kept in ours.
TEST(GuestMemory, OfSeveralMappings) {
  constexpr std::uint64_t kPages = 4;
  for (const int first_kind : {MAP_SHARED, MAP_PRIVATE}) {
    ChildProcess child([&](int socket) {
      void* const reserved =
          ::mmap(nullptr, 3 * kPages * kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      auto* const base = static_cast<std::byte*>(reserved);
      for (std::uint64_t i = 0; i < 3; ++i) {
        const int kind = i == 0 ? first_kind : MAP_SHARED;
        const int fd = ::memfd_create("part", 0);
        if (::ftruncate(fd, 2 * kPages * kPageSize) != 0) return 1;
        const off_t offset = i == 1 ? kPages * kPageSize : 0;
        std::byte* const at = base + i * kPages * kPageSize;
        if (::mmap(at, kPages * kPageSize, PROT_READ | PROT_WRITE, kind | MAP_FIXED, fd, offset) != at)
          return 2;
      }
      for (std::uint64_t page = 0; page < 3 * kPages; ++page)
        ChildGuest::fill(base + page * kPageSize, page, 3);
      const auto address = reinterpret_cast<std::uint64_t>(base);
      char end;
      return ::send(socket, &address, sizeof address, 0) > 0 && ::recv(socket, &end, 1, 0) == 0 ? 0 : 3;
    });
    const auto address = child.receive<std::uint64_t>();
    // The block begins inside the first mapping and ends inside the last.
    const GuestMemory memory(child.pid(), {{"ram", address + kPageSize, (3 * kPages - 2) * kPageSize}});
    EXPECT_EQ(memory.access(0), first_kind == MAP_SHARED ? MemoryAccess::mapped : MemoryAccess::remote);
    std::vector<std::byte> read((3 * kPages - 2) * kPageSize);
    memory.read(0, 0, read);
    EXPECT_EQ(read, expected_pages(1, 3 * kPages - 2, 3));
  }
}

TEST(GuestMemory, RefusesWhatIsNotMappedReadWrite) {
  ChildGuest guest({{Backing::memfd, 16}, {Backing::private_anonymous, 16}});
  const auto attach = [&](std::size_t block, std::uint64_t offset, std::uint64_t size) {
    RamBlock wanted = guest.blocks()[block];
    wanted.host_address += offset;
    wanted.size = size;
    return error_code([&] { GuestMemory(guest.pid(), {wanted}); });
  };
  EXPECT_EQ(attach(0, 0, 16 * kPageSize), "none");
  EXPECT_EQ(attach(0, 0, 0), "ERR_COLO_GUEST_MEMORY");
  EXPECT_EQ(attach(0, 1, kPageSize), "ERR_COLO_GUEST_MEMORY");
  EXPECT_EQ(attach(0, 0, kPageSize + 1), "ERR_COLO_GUEST_MEMORY");
  EXPECT_EQ(attach(0, 0, std::uint64_t{1} << 40), "ERR_COLO_GUEST_MEMORY");
  guest.unmap(0, 8, 1);
  EXPECT_EQ(attach(0, 0, 16 * kPageSize), "ERR_COLO_GUEST_MEMORY");
  EXPECT_EQ(attach(0, 9 * kPageSize, 7 * kPageSize), "none");
  const auto code = reinterpret_cast<std::uint64_t>(&expected_pages) / kPageSize * kPageSize;
  EXPECT_EQ(error_code([&] {
              GuestMemory(guest.pid(), {{"code", code, kPageSize}});
            }),
            "ERR_COLO_GUEST_MEMORY");
}

TEST(GuestMemory, NoticesThatTheProcessIsGone) {
  for (const Backing backing : {Backing::memfd, Backing::private_anonymous}) {
    ChildGuest guest({{backing, 16}});
    const GuestMemory memory(guest.pid(), guest.blocks());
    const pid_t pid = guest.pid();
    ::kill(pid, SIGKILL);
    ASSERT_TRUE(testing::wait_until([&] { return error_code([&] { memory.require_alive(); }) != "none"; }));
    EXPECT_EQ(error_code([&] { memory.require_alive(); }), "ERR_COLO_GUEST_MEMORY");
    std::vector<std::byte> page(kPageSize);
    const PageRun run{0, 1};
    const MemoryWrite write{0, page.data(), 8};
    EXPECT_EQ(error_code([&] { memory.read(0, 0, page); }), "ERR_COLO_GUEST_MEMORY");
    EXPECT_EQ(error_code([&] { memory.read_pages(0, {&run, 1}, page.data()); }), "ERR_COLO_GUEST_MEMORY");
    EXPECT_EQ(error_code([&] { memory.write(0, {&write, 1}); }), "ERR_COLO_GUEST_MEMORY");
    guest.process().wait();
    EXPECT_EQ(error_code([&] { GuestMemory(pid, guest.blocks()); }), "ERR_COLO_PROCESS");
  }
}

TEST(GuestMemory, ReportsAPageThatWasUnmapped) {
  ChildGuest guest({{Backing::private_anonymous, 16}});
  guest.write(0, 0, 16, 1);
  const GuestMemory memory(guest.pid(), guest.blocks());
  guest.unmap(0, 8, 1);
  std::vector<std::byte> bytes(16 * kPageSize);
  EXPECT_EQ(error_code([&] { memory.read(0, 0, bytes); }), "ERR_COLO_GUEST_MEMORY");
}

TEST(GuestMemoryDeathTest, RefusesWhatLiesOutsideTheBlock) {
  ChildGuest guest({{Backing::memfd, 16}});
  const GuestMemory memory(guest.pid(), guest.blocks());
  std::vector<std::byte> page(kPageSize);
  const PageRun run{15, 2};
  const MemoryWrite write{16 * kPageSize - 4, page.data(), 8};
  EXPECT_DEATH(memory.read(0, 15 * kPageSize + 1, page), "assertion failed");
  EXPECT_DEATH(memory.read_pages(0, {&run, 1}, page.data()), "assertion failed");
  EXPECT_DEATH(memory.write(0, {&write, 1}), "assertion failed");
}

// The kernel may transfer less than it was asked to; here it stops after a random part of what it was given,
// in the middle of a piece.
std::mt19937 partial_random;

ssize_t transfer_partially(pid_t pid, const iovec* local, unsigned long pieces, const iovec* remote,
                           unsigned long, unsigned long) {
  const unsigned long taken = 1 + partial_random() % std::min(pieces, 3ul);
  std::vector<iovec> ours(local, local + taken), theirs(remote, remote + taken);
  ours.back().iov_len = theirs.back().iov_len = 1 + partial_random() % ours.back().iov_len;
  return ::process_vm_readv(pid, ours.data(), taken, theirs.data(), taken, 0);
}

TEST(ProcessVmBatch, GoesOnWhereATransferEnded) {
  for (unsigned seed = 0; seed < 50; ++seed) {
    partial_random.seed(seed);
    std::vector<std::byte> from(50'000), to(from.size());
    for (std::byte& byte : from) byte = static_cast<std::byte>(partial_random());
    ProcessVmBatch batch(transfer_partially, ::getpid());
    for (std::size_t at = 0; at < from.size();) {
      const std::size_t length =
          std::min<std::size_t>(partial_random() % 100, from.size() - at);  // also none
      batch.add(reinterpret_cast<std::uint64_t>(&from[at]), &to[at], length);
      at += length;
    }
    batch.finish();
    EXPECT_EQ(to, from);
  }
}

TEST(ProcessVmBatch, GivesUpWithoutProgress) {
  const auto nothing = [](pid_t, const iovec*, unsigned long, const iovec*, unsigned long,
                          unsigned long) -> ssize_t { return 0; };
  std::byte here{};
  ProcessVmBatch batch(nothing, ::getpid());
  batch.add(reinterpret_cast<std::uint64_t>(&here), &here, 1);
  EXPECT_EQ(error_code([&] { batch.finish(); }), "ERR_COLO_GUEST_MEMORY");
}

}  // namespace
}  // namespace colo
