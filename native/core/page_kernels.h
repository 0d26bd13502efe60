// The two inner loops over a guest page, one version for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace colo {

inline constexpr std::size_t kLineSize = 64;
inline constexpr std::size_t kLinesPerPage = 64;  // one bit each in a mask of changed lines

// Every version gives the same results as the scalar one, which is built everywhere and serves the tests as
// oracle. Pages are kPageSize bytes and may lie at any address.
struct PageKernel {
  const char* name;
  // Bit i is set when bytes [64 i, 64 i + 64) of `page` and `base` differ.
  std::uint64_t (*changed_lines)(const std::byte* page, const std::byte* base);
  bool (*is_zero)(const std::byte* page);
};

// Has the processor fetch a page that will be looked at soon. Its own prefetching ends at a page's end, and
// pages that a guest writes are scattered over its RAM: each would begin with some misses.
inline void prefetch_page(const std::byte* page) {
  for (std::size_t line = 0; line < kLinesPerPage; ++line) __builtin_prefetch(page + line * kLineSize, 0, 2);
}

// The same for a page that is only copied: what follows its first lines the processor fetches by itself in
// time.
inline void prefetch_page_start(const std::byte* page) {
  for (std::size_t line = 0; line < 8; ++line) __builtin_prefetch(page + line * kLineSize, 0, 2);
}

// Those that this CPU and its operating system can run, from the scalar one up to the widest.
const std::vector<PageKernel>& page_kernels();

// The widest of them.
const PageKernel& best_page_kernel();

}  // namespace colo
