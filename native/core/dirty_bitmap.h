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
  void clear(std::uint64_t first, std::uint64_t count);
  bool test(std::uint64_t page) const;
  std::uint64_t count() const;
  // Whether every page of the run is dirty; it isn't empty and lies inside (asserted).
  bool all_set(std::uint64_t first, std::uint64_t count) const;
  // The first dirty pages at or after `from` that follow one another, `count_max` of them at most; count 0
  // when there are none.
  PageRun next_run(std::uint64_t from, std::uint64_t count_max) const;

  // Adds every dirty page of `other` (same length, asserted): a failed checkpoint's pages are dirty again
  // (invariant 3), and in lock-step the secondary's own pages join the primary's.
  void merge(const DirtyBitmap& other);

  // Appends the maximal runs of dirty pages, in order, to `out`.
  void append_runs(std::vector<PageRun>& out) const;

 private:
  // Calls visit(word, its bits of the run) until that returns false; asserts that the run lies inside.
  template <class Visit>
  void for_each_word(std::uint64_t first, std::uint64_t count, const Visit& visit) const;

  std::uint64_t pages_;
  std::vector<std::uint64_t> words_;
};

}  // namespace colo
