// A fixed share of guest RAM's pages, and what each of them last held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "dirty_bitmap.h"
#include "guest_memory.h"
#include "memory_region.h"

namespace colo {

// Each block is divided into groups of `group_pages` that follow one another; one page of each is in the
// sample, which one follows from a hash, so that no layout of the guest's data can favour it. Costs
// 1/group_pages of guest RAM. Not thread-safe.
class PageSample {
 public:
  // Throws ERR_COLO_MEMORY.
  PageSample(const GuestMemory& memory, std::uint64_t group_pages);

  // Reads the sampled pages as they are now. Those that QEMU has no page for are not read, since that could
  // make the kernel allocate them: they are zero. `present` has one bitmap a block, see present_pages().
  // Throws ERR_COLO_GUEST_MEMORY.
  void read_bases(const std::vector<DirtyBitmap>& present);

  // The sampled pages among those of `dirty`.
  void add_sampled(const std::vector<DirtyBitmap>& dirty, std::vector<DirtyBitmap>& sampled) const;

  // What a sampled page (asserted) last held; whoever encodes it brings it up to date.
  std::byte* base(std::size_t block, std::uint64_t page);

 private:
  std::uint64_t sampled_page(std::size_t block, std::uint64_t group) const;

  const GuestMemory& memory_;
  const std::uint64_t group_pages_;
  std::vector<MemoryRegion> bases_;  // a block's, group by group
};

// One bitmap a block: the pages that QEMU has in memory or in swap, by /proc/PID/pagemap. Only before the
// block is write-protected: what isn't there gets a marker then, which shows as swapped out. Throws
// ERR_COLO_PROCESS.
std::vector<DirtyBitmap> present_pages(const GuestMemory& memory);

}  // namespace colo
