#include "guest_memory.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "error.h"
#include "memory_region.h"
#include "page_kernels.h"
#include "process_maps.h"
#include "process_vm.h"
#include "unique_fd.h"

namespace colo {
namespace {

struct BlockState {
  RamBlock block;
  std::uint64_t page_size_bytes = kPageSize;
  MemoryRegion mapped;  // empty for `remote` access
};

std::string describe(const RamBlock& block) {
  char range[64];
  std::snprintf(range, sizeof range, " (0x%" PRIx64 ", %" PRIu64 " bytes)", block.host_address, block.size);
  return "RAM block " + block.name + range;
}

// The mappings that make up `block`, which must leave no gap and be readable and writable: QEMU maps guest
// RAM so, and anything else means that the address isn't what we think it is.
std::vector<Mapping> covering_mappings(const std::vector<Mapping>& all, const RamBlock& block) {
  std::vector<Mapping> covering;
  const std::uint64_t block_end = block.host_address + block.size;
  std::uint64_t covered_to = block.host_address;
  for (const Mapping& mapping : all) {
    if (mapping.end <= covered_to || covered_to >= block_end) continue;
    if (mapping.start > covered_to || !mapping.readable || !mapping.writable) break;
    covering.push_back(mapping);
    covered_to = mapping.end;
  }
  if (covered_to < block_end) {
    throw Error("ERR_COLO_GUEST_MEMORY", EFAULT, describe(block) + " isn't mapped read-write in QEMU");
  }
  return covering;
}

// Lays the files behind `covering` over one range of our own, in the same order as in QEMU. Empty when one of
// them isn't shared or can't be opened here: the block is then reached from outside.
MemoryRegion map_shared(pid_t pid, const RamBlock& block, const std::vector<Mapping>& covering,
                        std::uint64_t page_size) {
  const std::uint64_t size = (block.size + page_size - 1) / page_size * page_size;
  // Aligned as the backend's huge pages are, without which neither hugetlbfs nor transparent huge pages can
  // be mapped.
  MemoryRegion region(size, PROT_NONE, std::max(page_size, kHugePageSize));
  for (const Mapping& mapping : covering) {
    char path[96];
    std::snprintf(path, sizeof path, "/proc/%d/map_files/%" PRIx64 "-%" PRIx64, pid, mapping.start,
                  mapping.end);
    const UniqueFd file(mapping.shared ? ::open(path, O_RDWR | O_CLOEXEC) : -1);
    if (!file) return {};
    const std::uint64_t start = std::max(mapping.start, block.host_address);
    const std::uint64_t end = std::min(mapping.end, block.host_address + size);
    const auto file_offset = static_cast<off_t>(mapping.file_offset + (start - mapping.start));
    void* const at = region.data() + (start - block.host_address);
    if (::mmap(at, end - start, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file.get(),
               file_offset) != at) {
      return {};
    }
  }
  region.seal();
  return region;
}

BlockState attach(pid_t pid, const std::vector<Mapping>& mappings, RamBlock block) {
  if (block.size == 0 || block.size % kPageSize != 0 || block.host_address % kPageSize != 0) {
    throw Error("ERR_COLO_GUEST_MEMORY", EINVAL, describe(block) + " isn't made of whole pages");
  }
  const std::vector<Mapping> covering = covering_mappings(mappings, block);
  BlockState state;
  for (const Mapping& mapping : covering) {
    state.page_size_bytes = std::max(state.page_size_bytes, mapping.page_size_bytes);
  }
  state.mapped = map_shared(pid, block, covering, state.page_size_bytes);
  state.block = std::move(block);
  return state;
}

}  // namespace

struct GuestMemory::State {
  pid_t pid;
  UniqueFd pidfd;
  std::vector<BlockState> blocks;
  std::uint64_t total_bytes = 0;
};

GuestMemory::GuestMemory(pid_t pid, std::vector<RamBlock> blocks) : state_(std::make_unique<State>()) {
  state_->pid = pid;
  state_->pidfd = UniqueFd(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!state_->pidfd) throw_errno("ERR_COLO_PROCESS", "process " + std::to_string(pid));
  const std::vector<Mapping> mappings = read_process_maps(pid);
  for (RamBlock& block : blocks) {
    state_->blocks.push_back(attach(pid, mappings, std::move(block)));
    state_->total_bytes += state_->blocks.back().block.size;
  }
}

GuestMemory::~GuestMemory() = default;

pid_t GuestMemory::pid() const { return state_->pid; }

std::size_t GuestMemory::block_count() const { return state_->blocks.size(); }

const RamBlock& GuestMemory::block(std::size_t index) const { return state_->blocks.at(index).block; }

MemoryAccess GuestMemory::access(std::size_t index) const {
  return mapped(index) != nullptr ? MemoryAccess::mapped : MemoryAccess::remote;
}

std::uint64_t GuestMemory::total_bytes() const { return state_->total_bytes; }

std::uint64_t GuestMemory::page_size_bytes(std::size_t index) const {
  return state_->blocks.at(index).page_size_bytes;
}

const std::byte* GuestMemory::mapped(std::size_t index) const {
  return state_->blocks.at(index).mapped.data();
}

// Process numbers are used again: without this a late process_vm_writev could hit a stranger.
void GuestMemory::require_alive() const {
  pollfd watched{state_->pidfd.get(), POLLIN, 0};
  if (::poll(&watched, 1, 0) != 0) {
    throw Error("ERR_COLO_GUEST_MEMORY", ESRCH, "QEMU process " + std::to_string(state_->pid) + " is gone");
  }
}

namespace {

// Scattered pages one after the other into `out`, each fetched while the one before is copied: a quarter less
// time.
void copy_pages(const std::byte* ram, std::span<const PageRun> runs, std::byte* out) {
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const std::byte* page = ram + runs[i].first * kPageSize;
    const std::byte* const end = page + runs[i].count * kPageSize;
    for (; page < end; page += kPageSize, out += kPageSize) {
      if (page + kPageSize < end) {
        prefetch_page_start(page + kPageSize);
      } else if (i + 1 < runs.size()) {
        prefetch_page_start(ram + runs[i + 1].first * kPageSize);
      }
      std::memcpy(out, page, kPageSize);
    }
  }
}

}  // namespace

void GuestMemory::read_pages(std::size_t index, std::span<const PageRun> runs, std::byte* out) const {
  const RamBlock& block = this->block(index);
  const std::byte* const ours = mapped(index);
  require_alive();
  for (const PageRun& run : runs) {
    COLO_ASSERT(run.first <= block.pages() && run.count <= block.pages() - run.first);
  }
  if (ours != nullptr) {
    copy_pages(ours, runs, out);
    return;
  }
  ProcessVmBatch batch(::process_vm_readv, state_->pid);
  for (const PageRun& run : runs) {
    const std::size_t length = run.count * kPageSize;
    batch.add(block.host_address + run.first * kPageSize, out, length);
    out += length;
  }
  batch.finish();
}

void GuestMemory::read(std::size_t index, std::uint64_t offset, std::span<std::byte> out) const {
  const RamBlock& block = this->block(index);
  COLO_ASSERT(offset <= block.size && out.size() <= block.size - offset);
  require_alive();
  if (const std::byte* const ours = mapped(index)) {
    std::memcpy(out.data(), ours + offset, out.size());
    return;
  }
  ProcessVmBatch batch(::process_vm_readv, state_->pid);
  batch.add(block.host_address + offset, out.data(), out.size());
  batch.finish();
}

void GuestMemory::write(std::size_t index, std::span<const MemoryWrite> writes) const {
  const RamBlock& block = this->block(index);
  std::byte* const ours = state_->blocks.at(index).mapped.data();
  require_alive();
  ProcessVmBatch batch(::process_vm_writev, state_->pid);
  for (const MemoryWrite& write : writes) {
    COLO_ASSERT(write.offset <= block.size && write.length <= block.size - write.offset);
    if (ours != nullptr) {
      std::memcpy(ours + write.offset, write.data, write.length);
    } else {
      batch.add(block.host_address + write.offset, write.data, write.length);
    }
  }
  batch.finish();
}

}  // namespace colo
