// Address space of our own that is unmapped when its owner goes.
#pragma once

#include <cstddef>

namespace colo {

inline constexpr std::size_t kHugePageSize = 2u << 20;

// What lies in one is guest memory, so none of it belongs into a core dump, and it is large, so a forked
// child (Node.js starts processes by fork) must not pay for copying its page tables: see seal().
class MemoryRegion {
 public:
  MemoryRegion() = default;

  // Reserves `size` bytes (rounded up to whole pages) of anonymous memory with `protection` (PROT_*). The
  // address is a multiple of `alignment`, a power of two of at least a page. Nothing is committed
  // (MAP_NORESERVE). Throws ERR_COLO_MEMORY.
  MemoryRegion(std::size_t size, int protection, std::size_t alignment = 4096);
  MemoryRegion(MemoryRegion&& other) noexcept;
  MemoryRegion& operator=(MemoryRegion&& other) noexcept;
  ~MemoryRegion();

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

  // Keeps the region out of core dumps and forked children. To be called when its last mapping is in place: a
  // mapping laid over it later would begin without. Throws ERR_COLO_MEMORY.
  void seal() const;

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace colo
