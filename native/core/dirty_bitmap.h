// One bit a page of a RAM block: which pages must go across with the next checkpoint.
#pragma once

#include <cstdint>
#include <vector>

#include "guest_memory.h"

namespace colo {

// Bits past the last page are always zero, so that words can be counted and merged whole. Thread rules:
// several threads may set() at once when no two of them touch the same kSharePages-aligned group of pages;
// everything else wants one thread at a time.
class DirtyBitmap {
 public:
  static constexpr std::uint64_t kSharePages = 64;  // one word

  explicit DirtyBitmap(std::uint64_t pages);

  std::uint64_t pages() const { return pages_; }
  void set(std::uint64_t first, std::uint64_t count);  // asserts that the run lies inside
  void set_all();
  void clear();
  bool test(std::uint64_t page) const;
  std::uint64_t count() const;

  // Adds every dirty page of `other` (same length, asserted): a failed checkpoint's pages are dirty again
  // (invariant 3), and in lock-step the secondary's own pages join the primary's.
  void merge(const DirtyBitmap& other);

  // Appends the maximal runs of dirty pages, in order, to `out`.
  void append_runs(std::vector<PageRun>& out) const;

 private:
  std::uint64_t pages_;
  std::vector<std::uint64_t> words_;
};

}  // namespace colo
