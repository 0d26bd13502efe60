#include "../core/page_kernels.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <vector>

#include "../core/guest_memory.h"

namespace colo {
namespace {

std::uint64_t obvious_changed_lines(const std::byte* page, const std::byte* base) {
  std::uint64_t mask = 0;
  for (std::size_t i = 0; i < kPageSize; ++i) {
    if (page[i] != base[i]) mask |= std::uint64_t{1} << (i / kLineSize);
  }
  return mask;
}

bool obvious_is_zero(const std::byte* page) {
  for (std::size_t i = 0; i < kPageSize; ++i) {
    if (page[i] != std::byte{0}) return false;
  }
  return true;
}

class PageKernelsTest : public ::testing::TestWithParam<PageKernel> {};

TEST_P(PageKernelsTest, FindsEveryDifferingByteAlone) {
  std::vector<std::byte> page(kPageSize, std::byte{0x5a}), base = page, zero(kPageSize);
  ASSERT_EQ(GetParam().changed_lines(page.data(), base.data()), 0u);
  ASSERT_TRUE(GetParam().is_zero(zero.data()));
  for (std::size_t i = 0; i < kPageSize; ++i) {
    for (const unsigned bit : {0x01u, 0x80u}) {
      page[i] ^= std::byte(bit);
      ASSERT_EQ(GetParam().changed_lines(page.data(), base.data()), std::uint64_t{1} << (i / kLineSize))
          << "byte " << i;
      ASSERT_EQ(GetParam().changed_lines(base.data(), page.data()), std::uint64_t{1} << (i / kLineSize))
          << "byte " << i;
      page[i] ^= std::byte(bit);
      zero[i] = std::byte(bit);
      ASSERT_FALSE(GetParam().is_zero(zero.data())) << "byte " << i;
      zero[i] = std::byte{0};
    }
  }
}

TEST_P(PageKernelsTest, AgreesWithTheObviousVersionOnRandomPages) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  std::vector<std::byte> page(kPageSize + 64), base(kPageSize + 64);
  for (int round = 0; round < 3000; ++round) {
    const std::size_t shift = random() % 64;  // unaligned, too
    std::byte* const a = page.data() + shift;
    std::byte* const b = base.data() + shift;
    const bool zeros = random() % 3 == 0;
    for (std::size_t i = 0; i < kPageSize; ++i) b[i] = zeros ? std::byte{0} : std::byte(random());
    std::memcpy(a, b, kPageSize);
    for (std::size_t changes = random() % 80 * (random() % 2); changes > 0; --changes)
      a[random() % kPageSize] = std::byte(random());
    ASSERT_EQ(GetParam().changed_lines(a, b), obvious_changed_lines(a, b));
    ASSERT_EQ(GetParam().is_zero(a), obvious_is_zero(a));
  }
}

INSTANTIATE_TEST_SUITE_P(EveryKernelOfThisCpu, PageKernelsTest, ::testing::ValuesIn(page_kernels()),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(PageKernels, BeginWithTheScalarOneAndPreferTheWidest) {
  ASSERT_FALSE(page_kernels().empty());
  EXPECT_STREQ(page_kernels().front().name, "scalar");
  EXPECT_STREQ(best_page_kernel().name, page_kernels().back().name);
#if defined(__x86_64__) || defined(__aarch64__)
  EXPECT_GE(page_kernels().size(), 2u);
#endif
}

}  // namespace
}  // namespace colo
