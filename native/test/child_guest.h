// A child process whose memory blocks stand in for guest RAM, for tests and benchmarks.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "../core/guest_memory.h"
#include "child_process.h"

namespace colo::testing {

enum class Backing { memfd, shared_anonymous, private_anonymous, hugetlb_memfd, hugetlb_private };

inline constexpr std::uint64_t kHugePageBytes = 2u << 20;

inline bool is_hugetlb(Backing backing) {
  return backing == Backing::hugetlb_memfd || backing == Backing::hugetlb_private;
}

struct BlockSpec {
  Backing backing = Backing::memfd;
  std::uint64_t pages = 0;
};

// Asks the kernel for huge pages as long as it lives. The kernel has one number of them for everybody, and
// other tests may run beside this one: they take turns.
class HugePages {
 public:
  explicit HugePages(unsigned pages) : turn_(::open(kPath, O_RDONLY | O_CLOEXEC)) {
    if (::flock(turn_.get(), LOCK_EX) != 0) turn_.reset();
    if (!turn_) return;
    before_ = read();
    write(before_ + pages);
    granted_ = read() >= before_ + pages;
  }
  ~HugePages() {
    if (turn_) write(before_);
  }
  bool granted() const { return granted_; }

 private:
  static constexpr const char* kPath = "/proc/sys/vm/nr_hugepages";
  static unsigned read() {
    unsigned pages = 0;
    std::ifstream(kPath) >> pages;
    return pages;
  }
  static void write(unsigned pages) { std::ofstream(kPath) << pages; }

  UniqueFd turn_;
  unsigned before_ = 0;
  bool granted_ = false;
};

// Carries out one command at a time; every call returns when the child has done it. The child's main thread
// waits for commands in a system call, and exits when that is ever interrupted.
class ChildGuest {
 public:
  // The child becomes user `uid` once its memory is in place.
  explicit ChildGuest(const std::vector<BlockSpec>& specs, uid_t uid = 0)
      : process_([&specs, uid](int socket) { return serve(specs, uid, socket); }) {
    for (std::size_t i = 0; i < specs.size(); ++i) {
      blocks_.push_back(
          {"block" + std::to_string(i), process_.receive<std::uint64_t>(), specs[i].pages * kPageSize});
    }
  }

  pid_t pid() const { return process_.pid(); }
  const std::vector<RamBlock>& blocks() const { return blocks_; }
  ChildProcess& process() { return process_; }

  // Writes all of `count` pages from `first` on, each with bytes that follow from its number and `seed` (see
  // expected()).
  void write(std::size_t block, std::uint64_t first, std::uint64_t count, std::uint64_t seed) {
    run({Command::write, block, first, count, seed});
  }
  // The same, but by the kernel: preadv2 from a file straight into the pages.
  void write_by_kernel(std::size_t block, std::uint64_t first, std::uint64_t count, std::uint64_t seed) {
    run({Command::write_by_kernel, block, first, count, seed});
  }
  // Reads a byte of each page.
  void touch(std::size_t block, std::uint64_t first, std::uint64_t count) {
    run({Command::touch, block, first, count, 0});
  }
  // Takes private memory away and puts new memory there, as QEMU does after a memory error.
  void remap(std::size_t block, std::uint64_t first, std::uint64_t count) {
    run({Command::remap, block, first, count, 0});
  }
  // Goes on writing to random pages of the block, a few bytes each, until finish_writing().
  void start_writing(std::size_t block) { run({Command::write_on, block, 0, 0, 0}); }
  void finish_writing() { touch(0, 0, 0); }
  void unmap(std::size_t block, std::uint64_t first, std::uint64_t count) {
    run({Command::unmap, block, first, count, 0});
  }

  // Whether `count` pages from `first` on hold what write() with this seed leaves there, seen by the child.
  bool holds(std::size_t block, std::uint64_t first, std::uint64_t count, std::uint64_t seed) {
    return run({Command::check, block, first, count, seed}) == 0;
  }

  // What write() puts into a page. Most of these tests' time is spent here, ten times as much under
  // ThreadSanitizer.
  __attribute__((no_sanitize("thread"))) static void fill(std::byte* page, std::uint64_t number,
                                                          std::uint64_t seed) {
    std::uint64_t x = (number + 1) * 0x9e3779b97f4a7c15 ^ (seed + 1) * 0xbf58476d1ce4e5b9;
    for (std::size_t i = 0; i < kPageSize; i += sizeof x) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
      std::memcpy(page + i, &x, sizeof x);
    }
  }

 private:
  struct Command {
    enum Kind : std::uint64_t { write, write_by_kernel, touch, unmap, remap, check, write_on } kind;
    std::uint64_t block, first, count, seed;
  };

  std::uint64_t run(const Command& command) {
    process_.send(command);
    const auto result = process_.receive<std::uint64_t>();
    EXPECT_LE(result, 1u) << "the child failed with errno " << result - 1000;
    return result;
  }

  static std::byte* map(const BlockSpec& spec) {
    const std::uint64_t huge_pages = (spec.pages * kPageSize + kHugePageBytes - 1) / kHugePageBytes;
    const std::uint64_t size =
        is_hugetlb(spec.backing) ? huge_pages * kHugePageBytes : spec.pages * kPageSize;
    int flags = MAP_SHARED, fd = -1;
    switch (spec.backing) {
      case Backing::memfd:
      case Backing::hugetlb_memfd:
        fd = ::memfd_create("guest-ram", is_hugetlb(spec.backing) ? MFD_HUGETLB : 0);
        if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(size)) != 0) ::_exit(90);
        break;
      case Backing::shared_anonymous:
        flags = MAP_SHARED | MAP_ANONYMOUS;
        break;
      case Backing::private_anonymous:
        flags = MAP_PRIVATE | MAP_ANONYMOUS;
        break;
      case Backing::hugetlb_private:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB;
        break;
    }
    void* const found = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0);
    if (found == MAP_FAILED) ::_exit(91);
    return static_cast<std::byte*>(found);
  }

  static int serve(const std::vector<BlockSpec>& specs, uid_t uid, int socket) {
    const int file = ::memfd_create("scratch", MFD_CLOEXEC);
    std::vector<std::byte*> blocks;
    for (const BlockSpec& spec : specs) {
      blocks.push_back(map(spec));
      const auto address = reinterpret_cast<std::uint64_t>(blocks.back());
      if (::send(socket, &address, sizeof address, 0) != sizeof address) return 92;
    }
    if (uid != 0 && (::setgid(uid) != 0 || ::setuid(uid) != 0)) return 93;
    for (Command command;;) {
      const ssize_t length = ::recv(socket, &command, sizeof command, 0);
      if (length == 0) return 0;
      if (length != sizeof command) return 94;
      const std::uint64_t result =
          carry_out(command, blocks[command.block] + command.first * kPageSize, file);
      if (::send(socket, &result, sizeof result, 0) != sizeof result) return 95;
      if (command.kind == Command::write_on)
        write_on(blocks[command.block], specs[command.block].pages, socket);
    }
  }

  static void write_on(std::byte* block, std::uint64_t pages, int socket) {
    char next;
    for (std::uint64_t x = 1; ::recv(socket, &next, 1, MSG_PEEK | MSG_DONTWAIT) < 0;) {
      for (int i = 0; i < 100; ++i) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        std::memcpy(block + x % pages * kPageSize, &x, sizeof x);
      }
    }
  }

  static std::uint64_t carry_out(const Command& command, std::byte* at, int file) {
    alignas(kPageSize) std::byte page[kPageSize];
    if (command.kind == Command::unmap)
      return ::munmap(at, command.count * kPageSize) == 0 ? 0 : 1000 + errno;
    if (command.kind == Command::remap) {
      return ::mmap(at, command.count * kPageSize, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at
                 ? 0
                 : 1000 + errno;
    }
    for (std::uint64_t i = 0; i < command.count; ++i, at += kPageSize) {
      if (command.kind == Command::touch) {
        static_cast<void>(*static_cast<volatile std::byte*>(at));
        continue;
      }
      fill(page, command.first + i, command.seed);
      if (command.kind == Command::check) {
        if (std::memcmp(at, page, kPageSize) != 0) return 1;
      } else if (command.kind == Command::write) {
        std::memcpy(at, page, kPageSize);
      } else if (::pwrite(file, page, kPageSize, 0) != kPageSize ||
                 ::pread(file, at, kPageSize, 0) != kPageSize) {
        return 1000 + errno;
      }
    }
    return 0;
  }

  ChildProcess process_;
  std::vector<RamBlock> blocks_;
};

}  // namespace colo::testing
