#include "page_kernels.h"

#include <cstring>

#include "guest_memory.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

static_assert(colo::kPageSize == colo::kLineSize * colo::kLinesPerPage);

namespace colo {
namespace {

std::uint64_t changed_lines_scalar(const std::byte* page, const std::byte* base) {
  std::uint64_t mask = 0;
  for (std::size_t line = 0; line < kLinesPerPage; ++line) {
    const bool changed = std::memcmp(page + line * kLineSize, base + line * kLineSize, kLineSize) != 0;
    mask |= std::uint64_t{changed} << line;
  }
  return mask;
}

bool is_zero_scalar(const std::byte* page) {
  static const std::byte zero_line[kLineSize] = {};
  for (std::size_t line = 0; line < kLinesPerPage; ++line) {
    if (std::memcmp(page + line * kLineSize, zero_line, kLineSize) != 0) return false;
  }
  return true;
}

// The vector versions differ only in how one line is tested. is_zero looks at whole lines, too: a page that
// isn't zero shows it nearly always in its first line, so leaving early is worth more than testing wider
// pieces.
#if defined(__x86_64__)

inline __m128i load128(const std::byte* at) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)); }

inline bool line_is_zero_sse2(__m128i a, __m128i b, __m128i c, __m128i d) {
  const __m128i any = _mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d));
  return _mm_movemask_epi8(_mm_cmpeq_epi8(any, _mm_setzero_si128())) == 0xffff;
}

std::uint64_t changed_lines_sse2(const std::byte* page, const std::byte* base) {
  std::uint64_t mask = 0;
  for (std::size_t line = 0; line < kLinesPerPage; ++line, page += kLineSize, base += kLineSize) {
    const bool same = line_is_zero_sse2(_mm_xor_si128(load128(page), load128(base)),
                                        _mm_xor_si128(load128(page + 16), load128(base + 16)),
                                        _mm_xor_si128(load128(page + 32), load128(base + 32)),
                                        _mm_xor_si128(load128(page + 48), load128(base + 48)));
    mask |= std::uint64_t{!same} << line;
  }
  return mask;
}

bool is_zero_sse2(const std::byte* page) {
  for (const std::byte* end = page + kPageSize; page != end; page += kLineSize) {
    if (!line_is_zero_sse2(load128(page), load128(page + 16), load128(page + 32), load128(page + 48)))
      return false;
  }
  return true;
}

__attribute__((target("avx2"))) inline __m256i load256(const std::byte* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}

__attribute__((target("avx2"))) std::uint64_t changed_lines_avx2(const std::byte* page,
                                                                 const std::byte* base) {
  std::uint64_t mask = 0;
  for (std::size_t line = 0; line < kLinesPerPage; ++line, page += kLineSize, base += kLineSize) {
    const __m256i any = _mm256_or_si256(_mm256_xor_si256(load256(page), load256(base)),
                                        _mm256_xor_si256(load256(page + 32), load256(base + 32)));
    mask |= std::uint64_t{!_mm256_testz_si256(any, any)} << line;
  }
  return mask;
}

__attribute__((target("avx2"))) bool is_zero_avx2(const std::byte* page) {
  for (const std::byte* end = page + kPageSize; page != end; page += kLineSize) {
    const __m256i any = _mm256_or_si256(load256(page), load256(page + 32));
    if (!_mm256_testz_si256(any, any)) return false;
  }
  return true;
}

__attribute__((target("avx512f"))) std::uint64_t changed_lines_avx512(const std::byte* page,
                                                                      const std::byte* base) {
  std::uint64_t mask = 0;
  for (std::size_t line = 0; line < kLinesPerPage; ++line, page += kLineSize, base += kLineSize) {
    const bool changed = _mm512_cmpneq_epi64_mask(_mm512_loadu_si512(page), _mm512_loadu_si512(base)) != 0;
    mask |= std::uint64_t{changed} << line;
  }
  return mask;
}

__attribute__((target("avx512f"))) bool is_zero_avx512(const std::byte* page) {
  for (const std::byte* end = page + kPageSize; page != end; page += kLineSize) {
    const __m512i bytes = _mm512_loadu_si512(page);
    if (_mm512_test_epi64_mask(bytes, bytes) != 0) return false;
  }
  return true;
}

#elif defined(__aarch64__)

inline uint8x16_t load128(const std::byte* at) { return vld1q_u8(reinterpret_cast<const std::uint8_t*>(at)); }

inline bool line_is_zero_neon(uint8x16_t a, uint8x16_t b, uint8x16_t c, uint8x16_t d) {
  return vmaxvq_u8(vorrq_u8(vorrq_u8(a, b), vorrq_u8(c, d))) == 0;
}

std::uint64_t changed_lines_neon(const std::byte* page, const std::byte* base) {
  std::uint64_t mask = 0;
  for (std::size_t line = 0; line < kLinesPerPage; ++line, page += kLineSize, base += kLineSize) {
    const bool same = line_is_zero_neon(
        veorq_u8(load128(page), load128(base)), veorq_u8(load128(page + 16), load128(base + 16)),
        veorq_u8(load128(page + 32), load128(base + 32)), veorq_u8(load128(page + 48), load128(base + 48)));
    mask |= std::uint64_t{!same} << line;
  }
  return mask;
}

bool is_zero_neon(const std::byte* page) {
  for (const std::byte* end = page + kPageSize; page != end; page += kLineSize) {
    if (!line_is_zero_neon(load128(page), load128(page + 16), load128(page + 32), load128(page + 48)))
      return false;
  }
  return true;
}

#endif

std::vector<PageKernel> supported_kernels() {
  std::vector<PageKernel> kernels = {{"scalar", changed_lines_scalar, is_zero_scalar}};
#if defined(__x86_64__)
  kernels.push_back({"sse2", changed_lines_sse2, is_zero_sse2});  // part of the architecture
  if (__builtin_cpu_supports("avx2")) kernels.push_back({"avx2", changed_lines_avx2, is_zero_avx2});
  if (__builtin_cpu_supports("avx512f")) kernels.push_back({"avx512", changed_lines_avx512, is_zero_avx512});
#elif defined(__aarch64__)
  kernels.push_back({"neon", changed_lines_neon, is_zero_neon});  // part of the architecture
#endif
  return kernels;
}

}  // namespace

const std::vector<PageKernel>& page_kernels() {
  // Never destroyed: a process may exit while threads still look at pages.
  static const auto* const kernels = new std::vector<PageKernel>(supported_kernels());
  return *kernels;
}

const PageKernel& best_page_kernel() { return page_kernels().back(); }

}  // namespace colo
