// Dirty pages by the kernel's write-protection (Documentation/admin-guide/mm/userfaultfd.rst and
// pagemap.rst).
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "dirty_tracker.h"
#include "error.h"
#include "pagemap_scan.h"
#include "remote_syscall.h"
#include "unique_fd.h"

namespace colo {
namespace {

// What one thread scans at a time. A multiple of the huge page size, since a part of a huge page can't be
// protected, and of DirtyBitmap::kSharePages.
constexpr std::uint64_t kChunkBytes = 64u << 20;
static_assert(kChunkBytes % kHugePageSize == 0 && kChunkBytes % (DirtyBitmap::kSharePages * kPageSize) == 0);

// Dirty runs that lie closer together than this are protected by one call. The kernel takes the whole range
// of such a call out of KVM's page tables (the MMU notifier in do_pagemap_scan), and the guest faults on each
// of its pages again: too wide costs the guest, too narrow costs us calls in the pause. 3,000 random pages in
// 1 GiB cost as much as one call for everything at 256 pages, and twice as much at 64.
constexpr std::uint64_t kJoinBytes = 256 * kPageSize;

constexpr std::size_t kRegionsPerCall = 512;

[[noreturn]] void throw_for(int error, const std::string& what) {
  const std::string text = what + ": " + std::strerror(error);
  switch (error) {
    case ESRCH:
      throw Error("ERR_COLO_PROCESS", error, text);
    case EBUSY:
      throw Error("ERR_COLO_UFFD_BUSY", error, text);
    case ENOSYS:
    case EINVAL:
    case ENOTTY:
      throw Error("ERR_COLO_UFFD_UNSUPPORTED", error, text);
    default:
      throw Error("ERR_COLO_UFFD_DENIED", error, text);
  }
}

// USER_MODE_ONLY is what an unprivileged QEMU may ask for (vm.unprivileged_userfaultfd=0). It concerns faults
// that a reader of the descriptor must answer; with WP_ASYNC the kernel answers them all, those from kernel
// mode too.
UniqueFd take_userfaultfd(pid_t pid) {
  try {
    return take_remote_descriptor(pid, {SYS_userfaultfd, {O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY}});
  } catch (const Error& error) {
    throw_for(error.sys_errno(), error.what());
  }
}

// One piece of a block, as addresses in QEMU. With huge pages the last one may end after its block.
struct Chunk {
  std::size_t block;
  std::uint64_t start, end;
};

class UserfaultfdTracker final : public DirtyTracker {
 public:
  explicit UserfaultfdTracker(const GuestMemory& memory) : memory_(memory) {
    for (std::size_t block = 0; block < memory.block_count(); ++block) add_chunks(block);
    uffd_ = take_userfaultfd(memory.pid());
    uffdio_api api{UFFD_API, pagemap::kFeatures, 0};
    if (::ioctl(uffd_.get(), UFFDIO_API, &api) != 0)
      throw_for(errno, "userfaultfd of this kernel (6.7 is needed)");
    for (std::size_t block = 0; block < memory.block_count(); ++block) register_block(block);
    const std::string path = "/proc/" + std::to_string(memory.pid()) + "/pagemap";
    pagemap_ = UniqueFd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!pagemap_) throw_for(errno, path);
  }

  TrackerKind kind() const override { return TrackerKind::userfaultfd; }

  void protect_all() override {
    for (const Chunk& chunk : chunks_) {
      for (std::uint64_t at = chunk.start; at < chunk.end;)
        scan(at, chunk.end, pagemap::kWriteProtectMatching, {});
    }
    memory_.require_alive();
  }

  void collect(std::span<DirtyBitmap> dirty, WorkerPool& pool) override {
    COLO_ASSERT(dirty.size() == memory_.block_count());
    pool.run(static_cast<unsigned>(chunks_.size()), [&](unsigned part) {
      const Chunk& chunk = chunks_[part];
      collect_chunk(chunk, dirty[chunk.block]);
    });
    memory_.require_alive();  // the page tables of a process that is gone have no written pages
  }

 private:
  using Regions = std::span<pagemap::Region>;

  // The end of what is tracked of a block: hugetlb pages are tracked whole, also when the block ends inside
  // one.
  std::uint64_t tracked_end(std::size_t index) const {
    const std::uint64_t page_size = memory_.page_size_bytes(index);
    const RamBlock& block = memory_.block(index);
    return block.host_address + (block.size + page_size - 1) / page_size * page_size;
  }

  void add_chunks(std::size_t index) {
    // PAGEMAP_SCAN takes every hugetlb page for one of 2 MiB, and so never gets to protect a larger one.
    const std::uint64_t page_size = memory_.page_size_bytes(index);
    const RamBlock& block = memory_.block(index);
    if (page_size != kPageSize && page_size != kHugePageSize) {
      throw_for(ENOSYS, "RAM block " + block.name + " with pages of " + std::to_string(page_size) + " bytes");
    }
    const std::uint64_t end = tracked_end(index);
    for (std::uint64_t start = block.host_address; start < end; start += kChunkBytes) {
      chunks_.push_back({index, start, std::min(start + kChunkBytes, end)});
    }
  }

  void register_block(std::size_t index) {
    const RamBlock& block = memory_.block(index);
    uffdio_register arguments{
        {block.host_address, tracked_end(index) - block.host_address}, UFFDIO_REGISTER_MODE_WP, 0};
    if (::ioctl(uffd_.get(), UFFDIO_REGISTER, &arguments) != 0)
      throw_for(errno, "registering RAM block " + block.name);
  }

  // Two scans: the first only looks, at everything; the second protects the dirty runs that the first has
  // found. INVARIANT 3: what the second clears in the kernel, the first has put into `dirty` before; and
  // should a page be written between the two (the VM stands still, but nothing here relies on that), the
  // second reports it as well.
  void collect_chunk(const Chunk& chunk, DirtyBitmap& dirty) {
    std::array<pagemap::Region, kRegionsPerCall> buffer;
    for (std::uint64_t at = chunk.start; at < chunk.end;) {
      const Regions written = scan(at, chunk.end, 0, buffer);
      mark(written, chunk.block, dirty);
      for (std::size_t i = 0; i < written.size();) {
        const std::uint64_t start = written[i].start;
        std::uint64_t end = written[i].end;
        for (++i; i < written.size() && written[i].start - end < kJoinBytes; ++i) end = written[i].end;
        protect({chunk.block, start, end}, dirty);
      }
    }
  }

  void protect(const Chunk& run, DirtyBitmap& dirty) {
    std::array<pagemap::Region, kRegionsPerCall> buffer;
    for (std::uint64_t at = run.start; at < run.end;) {
      mark(scan(at, run.end, pagemap::kWriteProtectMatching, buffer), run.block, dirty);
    }
  }

  void mark(Regions written, std::size_t index, DirtyBitmap& dirty) const {
    const RamBlock& block = memory_.block(index);
    for (const pagemap::Region& region : written) {
      const std::uint64_t first = (region.start - block.host_address) / kPageSize;
      const std::uint64_t end = (region.end - block.host_address) / kPageSize;
      if (first < block.pages()) dirty.set(first, std::min(end, block.pages()) - first);
    }
  }

  // One PAGEMAP_SCAN for written pages from `at` on, which is moved to where it stopped: `end`, or earlier
  // when `buffer` was full. Returns the part of `buffer` that was filled.
  Regions scan(std::uint64_t& at, std::uint64_t end, std::uint64_t flags, Regions buffer) const {
    pagemap::ScanArguments arguments{};
    arguments.size = sizeof arguments;
    arguments.flags = flags | pagemap::kCheckWriteProtectAsync;
    arguments.start = at;
    arguments.end = end;
    arguments.regions = reinterpret_cast<std::uint64_t>(buffer.data());
    arguments.regions_length = buffer.size();
    arguments.category_mask = arguments.return_mask = pagemap::kIsWritten;
    const int found = ::ioctl(pagemap_.get(), pagemap::kScan, &arguments);
    if (found < 0) throw_errno("ERR_COLO_TRACKER", "PAGEMAP_SCAN");
    if (arguments.walk_end <= at) {
      throw Error("ERR_COLO_TRACKER", EIO, "PAGEMAP_SCAN doesn't get past an address");
    }
    at = arguments.walk_end;
    return buffer.first(static_cast<std::size_t>(found));
  }

  const GuestMemory& memory_;
  std::vector<Chunk> chunks_;
  // The only descriptor of the userfaultfd. INVARIANT 7: the kernel lifts every protection when it is closed,
  // by us or by our death.
  UniqueFd uffd_;
  UniqueFd pagemap_;
};

}  // namespace

std::unique_ptr<DirtyTracker> make_userfaultfd_tracker(const GuestMemory& memory) {
  return std::make_unique<UserfaultfdTracker>(memory);
}

}  // namespace colo
