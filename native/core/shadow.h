// A private copy of guest RAM as the last checkpoint sent it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "guest_memory.h"

namespace colo {

// Costs one guest RAM of memory, taken from the kernel page by page as it is first written (anonymous, MAP_NORESERVE), all zero at the
// start. Threads may use disjoint pages at once.
class Shadow {
 public:
  explicit Shadow(const GuestMemory& memory);
  ~Shadow();
  Shadow(const Shadow&) = delete;
  Shadow& operator=(const Shadow&) = delete;

  std::byte* page(std::size_t block, std::uint64_t page) { return bases_[block] + page * kPageSize; }
  const std::byte* page(std::size_t block, std::uint64_t page) const { return bases_[block] + page * kPageSize; }

 private:
  std::vector<std::byte*> bases_;
  std::vector<std::size_t> sizes_;
};

}  // namespace colo
