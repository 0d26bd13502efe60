// The copy inside the pause: dirty pages into staging.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "dirty_bitmap.h"
#include "guest_memory.h"
#include "memory_region.h"
#include "worker_pool.h"

namespace colo {

// `count` consecutive pages of `block`, whose bytes lie one after the other at `data`.
struct CapturedRun {
  std::uint32_t block = 0;
  std::uint64_t first = 0;
  std::uint64_t count = 0;
  const std::byte* data = nullptr;
};

// Preallocated room for captured pages. Address space for all of guest RAM is reserved once (a guest may
// dirty everything in one epoch), the first `resident_bytes` are populated at once so that no page fault
// falls into the pause. trim() gives back what an unusual epoch took beyond that; what many take stays, so
// that a guest that always writes much finds its pauses without page faults, too.
class Staging {
 public:
  Staging(std::uint64_t capacity_bytes, std::uint64_t resident_bytes);  // throws ERR_COLO_MEMORY

  std::byte* data() { return region_.data(); }
  std::uint64_t capacity_bytes() const { return region_.size(); }
  // After an epoch that took the first `used_bytes`.
  void trim(std::uint64_t used_bytes);

 private:
  MemoryRegion region_;
  const std::uint64_t resident_bytes_;
  std::uint64_t kept_bytes_;
};

// Copies every page of `dirty` (one bitmap a block) into `staging` from its beginning on, shared out over
// `pool`, and appends where they lie to `out`, in the order of blocks and pages. Returns the number of pages.
// The VM is stopped. Throws ERR_COLO_GUEST_MEMORY and leaves `out` as it was. INVARIANT 3: `dirty` is only
// read: its pages stay dirty until whoever sends them knows that they have arrived.
std::uint64_t capture_pages(const GuestMemory& memory, std::span<const DirtyBitmap> dirty, Staging& staging,
                            WorkerPool& pool, std::vector<CapturedRun>& out);

}  // namespace colo
