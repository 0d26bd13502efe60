// A private copy of guest RAM as the last checkpoint sent it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "guest_memory.h"
#include "memory_region.h"

namespace colo {

// Costs one guest RAM of memory, taken from the kernel as it is first written (anonymous, MAP_NORESERVE), all
// zero at the start; in huge pages where the kernel has them. That is for the standby's sake: the sockets of
// an agent that is killed are closed only when its memory has been given back, which in small pages takes
// some 50 ms a GiB. Threads may use disjoint pages at once.
class Shadow {
 public:
  explicit Shadow(const GuestMemory& memory);  // throws ERR_COLO_MEMORY

  std::byte* page(std::size_t block, std::uint64_t page) { return blocks_[block].data() + page * kPageSize; }
  const std::byte* page(std::size_t block, std::uint64_t page) const {
    return blocks_[block].data() + page * kPageSize;
  }

 private:
  std::vector<MemoryRegion> blocks_;
};

}  // namespace colo
