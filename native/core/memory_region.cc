#include "memory_region.h"

#include <sys/mman.h>

#include <bit>
#include <cstdint>
#include <utility>

#include "error.h"
#include "guest_memory.h"

namespace colo {

MemoryRegion::MemoryRegion(std::size_t size, int protection, std::size_t alignment) {
  COLO_ASSERT(std::has_single_bit(alignment) && alignment >= kPageSize);
  size_ = (size + kPageSize - 1) & ~(kPageSize - 1);
  // mmap() aligns to pages only: ask for more and give the ends back.
  const std::size_t asked = size_ + alignment - kPageSize;
  void* found = ::mmap(nullptr, asked, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (found == MAP_FAILED) throw_errno("ERR_COLO_MEMORY", "reserving " + std::to_string(asked) + " bytes");
  std::byte* begin = static_cast<std::byte*>(found);
  const auto address = reinterpret_cast<std::uintptr_t>(begin);
  const std::size_t head = (alignment - address % alignment) % alignment;
  const std::size_t tail = asked - head - size_;
  data_ = begin + head;
  if (head > 0) COLO_ASSERT(::munmap(begin, head) == 0);
  if (tail > 0) COLO_ASSERT(::munmap(data_ + size_, tail) == 0);
}

MemoryRegion::MemoryRegion(MemoryRegion&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

MemoryRegion& MemoryRegion::operator=(MemoryRegion&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MemoryRegion::~MemoryRegion() {
  if (size_ > 0) COLO_ASSERT(::munmap(data_, size_) == 0);
}

void MemoryRegion::seal() const {
  if (size_ == 0) return;
  if (::madvise(data_, size_, MADV_DONTDUMP) != 0 || ::madvise(data_, size_, MADV_DONTFORK) != 0) {
    throw_errno("ERR_COLO_MEMORY", "madvise");
  }
}

}  // namespace colo
