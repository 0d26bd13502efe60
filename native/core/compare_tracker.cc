// Dirty pages found by looking at all of them: slow, but it needs nothing of the kernel.
#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "dirty_tracker.h"
#include "error.h"

namespace colo {
namespace {

// What one thread compares at a time, a multiple of DirtyBitmap::kSharePages.
constexpr std::uint64_t kChunkPages = 4096;
static_assert(kChunkPages % DirtyBitmap::kSharePages == 0);

// Private memory is read in pieces of this size: large enough to make the system call cheap, small enough to
// be compared out of the cache.
constexpr std::uint64_t kBouncePages = 32;

struct Chunk {
  std::size_t block;
  PageRun pages;
};

class CompareTracker final : public DirtyTracker {
 public:
  CompareTracker(const GuestMemory& memory, const Shadow& shadow) : memory_(memory), shadow_(shadow) {
    for (std::size_t block = 0; block < memory.block_count(); ++block) {
      const std::uint64_t pages = memory.block(block).pages();
      for (std::uint64_t first = 0; first < pages; first += kChunkPages) {
        chunks_.push_back({block, {first, std::min(kChunkPages, pages - first)}});
      }
    }
  }

  TrackerKind kind() const override { return TrackerKind::compare; }

  void protect_all() override { all_ = true; }

  // INVARIANT 3: nothing is cleared here. A page that was reported differs from the shadow until it has been
  // sent, so it is reported again.
  void collect(std::span<DirtyBitmap> dirty, WorkerPool& pool) override {
    COLO_ASSERT(dirty.size() == memory_.block_count());
    if (std::exchange(all_, false)) {
      for (DirtyBitmap& bitmap : dirty) bitmap.set_all();
      return;
    }
    pool.run(static_cast<unsigned>(chunks_.size()), [&](unsigned part) {
      const Chunk& chunk = chunks_[part];
      collect_chunk(chunk, dirty[chunk.block]);
    });
    memory_.require_alive();
  }

 private:
  void collect_chunk(const Chunk& chunk, DirtyBitmap& dirty) const {
    if (const std::byte* const mapped = memory_.mapped(chunk.block)) {
      compare(mapped + chunk.pages.first * kPageSize, chunk.block, chunk.pages, dirty);
      return;
    }
    std::vector<std::byte> bounce(kBouncePages * kPageSize);
    const std::uint64_t end = chunk.pages.first + chunk.pages.count;
    for (std::uint64_t first = chunk.pages.first; first < end; first += kBouncePages) {
      const PageRun piece{first, std::min(kBouncePages, end - first)};
      memory_.read_pages(chunk.block, {&piece, 1}, bounce.data());
      compare(bounce.data(), chunk.block, piece, dirty);
    }
  }

  void compare(const std::byte* now, std::size_t block, PageRun pages, DirtyBitmap& dirty) const {
    for (std::uint64_t i = 0; i < pages.count; ++i) {
      const std::uint64_t page = pages.first + i;
      if (std::memcmp(now + i * kPageSize, shadow_.page(block, page), kPageSize) != 0) dirty.set(page, 1);
    }
  }

  const GuestMemory& memory_;
  const Shadow& shadow_;
  std::vector<Chunk> chunks_;
  bool all_ = false;
};

}  // namespace

std::unique_ptr<DirtyTracker> make_compare_tracker(const GuestMemory& memory, const Shadow& shadow) {
  return std::make_unique<CompareTracker>(memory, shadow);
}

}  // namespace colo
