#include "dirty_bitmap.h"

#include <algorithm>
#include <bit>
#include <cstddef>

#include "error.h"

namespace colo {
namespace {

constexpr std::uint64_t kWordBits = DirtyBitmap::kSharePages;
constexpr std::uint64_t kAllOnes = ~std::uint64_t{0};

// Words are kept in whole groups, so that loops over one group have a constant length: that is what the
// compiler turns into vector code without a scalar rest.
constexpr std::size_t kGroupWords = 8;

constexpr std::size_t words_for(std::uint64_t pages) {
  constexpr std::uint64_t group_bits = kGroupWords * kWordBits;
  return (pages + group_bits - 1) / group_bits * kGroupWords;
}

// Counts bits in parallel within the word (Hacker's Delight, 5-1) and without multiplication: vectorised by
// the compiler even for the plainest x86-64, where std::popcount is a call of a table look-up.
constexpr std::uint64_t count_bits(std::uint64_t word) {
  word -= (word >> 1) & 0x5555555555555555;
  word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333);
  word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f;
  word += word >> 8;
  word += word >> 16;
  word += word >> 32;
  return word & 0x7f;
}

// The bits [first, first + count) of one word.
constexpr std::uint64_t mask(std::uint64_t first, std::uint64_t count) {
  return count == kWordBits ? kAllOnes : ((std::uint64_t{1} << count) - 1) << first;
}

}  // namespace

DirtyBitmap::DirtyBitmap(std::uint64_t pages) : pages_(pages), words_(words_for(pages)) {}

template <class Visit>
void DirtyBitmap::for_each_word(std::uint64_t first, std::uint64_t count, const Visit& visit) const {
  COLO_ASSERT(first <= pages_ && count <= pages_ - first);
  while (count > 0) {
    const std::uint64_t bit = first % kWordBits;
    const std::uint64_t here = std::min(count, kWordBits - bit);
    if (!visit(first / kWordBits, mask(bit, here))) return;
    first += here;
    count -= here;
  }
}

void DirtyBitmap::set(std::uint64_t first, std::uint64_t count) {
  for_each_word(first, count, [this](std::uint64_t word, std::uint64_t bits) {
    words_[word] |= bits;
    return true;
  });
}

void DirtyBitmap::clear(std::uint64_t first, std::uint64_t count) {
  for_each_word(first, count, [this](std::uint64_t word, std::uint64_t bits) {
    words_[word] &= ~bits;
    return true;
  });
}

bool DirtyBitmap::all_set(std::uint64_t first, std::uint64_t count) const {
  COLO_ASSERT(count > 0);
  bool all = true;
  for_each_word(first, count,
                [&](std::uint64_t word, std::uint64_t bits) { return all = (words_[word] & bits) == bits; });
  return all;
}

PageRun DirtyBitmap::next_run(std::uint64_t from, std::uint64_t count_max) const {
  COLO_ASSERT(count_max > 0);
  while (from < pages_) {
    const std::uint64_t rest = words_[from / kWordBits] >> from % kWordBits;
    if (rest != 0) {
      from += static_cast<std::uint64_t>(std::countr_zero(rest));
      break;
    }
    from = (from / kWordBits + 1) * kWordBits;
  }
  PageRun run{from, 0};
  while (run.count < count_max && from + run.count < pages_) {
    const std::uint64_t at = from + run.count, in_word = kWordBits - at % kWordBits;
    const auto dirty = static_cast<std::uint64_t>(std::countr_one(words_[at / kWordBits] >> at % kWordBits));
    run.count += std::min({dirty, in_word, count_max - run.count});
    if (dirty < in_word) break;
  }
  return run;
}

void DirtyBitmap::set_all() { set(0, pages_); }

void DirtyBitmap::clear() { std::fill(words_.begin(), words_.end(), 0); }

bool DirtyBitmap::test(std::uint64_t page) const {
  COLO_ASSERT(page < pages_);
  return (words_[page / kWordBits] >> (page % kWordBits) & 1) != 0;
}

std::uint64_t DirtyBitmap::count() const {
  std::uint64_t total = 0;
  for (std::size_t group = 0; group < words_.size(); group += kGroupWords) {
    for (std::size_t i = 0; i < kGroupWords; ++i) total += count_bits(words_[group + i]);
  }
  return total;
}

void DirtyBitmap::merge(const DirtyBitmap& other) {
  COLO_ASSERT(other.pages_ == pages_);
  for (std::size_t group = 0; group < words_.size(); group += kGroupWords) {
    std::uint64_t* const ours = &words_[group];
    const std::uint64_t* const theirs = &other.words_[group];
    std::uint64_t merged[kGroupWords];
    for (std::size_t i = 0; i < kGroupWords; ++i) merged[i] = ours[i] | theirs[i];
    std::copy_n(merged, kGroupWords, ours);
  }
}

void DirtyBitmap::append_runs(std::vector<PageRun>& out) const {
  PageRun run;  // the one being built; empty between runs
  for (std::size_t word = 0; word < words_.size(); ++word) {
    std::uint64_t rest = words_[word];
    // Ends with the run that a clear bit has ended; one that reaches the end of the word may go on in the
    // next.
    std::uint64_t bit = 0;
    while (rest != 0) {
      const auto clear = static_cast<std::uint64_t>(std::countr_zero(rest));
      const auto dirty = static_cast<std::uint64_t>(std::countr_one(rest >> clear));
      const std::uint64_t first = word * kWordBits + bit + clear;
      if (run.first + run.count == first) {
        run.count += dirty;
      } else {
        if (run.count > 0) out.push_back(run);
        run = {first, dirty};
      }
      bit += clear + dirty;
      rest = bit == kWordBits ? 0 : words_[word] >> bit;
    }
  }
  if (run.count > 0) out.push_back(run);
}

}  // namespace colo
