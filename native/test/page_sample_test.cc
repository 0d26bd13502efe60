#include "../core/page_sample.h"

#include <sys/stat.h>

#include <random>

#include "child_guest.h"

namespace colo {
namespace {

using testing::Backing;
using testing::ChildGuest;

std::vector<DirtyBitmap> bitmaps(const GuestMemory& memory) {
  std::vector<DirtyBitmap> result;
  for (std::size_t block = 0; block < memory.block_count(); ++block)
    result.emplace_back(memory.block(block).pages());
  return result;
}

std::vector<DirtyBitmap> whole_sample(const PageSample& sample, const GuestMemory& memory) {
  auto all = bitmaps(memory), sampled = bitmaps(memory);
  for (DirtyBitmap& block : all) block.set_all();
  sample.add_sampled(all, sampled);
  return sampled;
}

class PageSampleTest : public ::testing::TestWithParam<std::uint64_t> {
 protected:
  const std::uint64_t group_ = GetParam();
  ChildGuest guest_{{{Backing::memfd, 1000}, {Backing::private_anonymous, 777}, {Backing::memfd, 1}}};
  GuestMemory memory_{guest_.pid(), guest_.blocks()};
  PageSample sample_{memory_, group_};
};

TEST_P(PageSampleTest, HasOnePageOfEachGroup) {
  const auto sampled = whole_sample(sample_, memory_);
  for (std::size_t block = 0; block < memory_.block_count(); ++block) {
    const std::uint64_t pages = memory_.block(block).pages();
    for (std::uint64_t first = 0; first < pages; first += group_) {
      std::uint64_t found = 0;
      for (std::uint64_t page = first; page < std::min(first + group_, pages); ++page)
        found += sampled[block].test(page) ? 1 : 0;
      EXPECT_EQ(found, 1u) << "block " << block << " from page " << first;
    }
  }
}

TEST_P(PageSampleTest, FindsTheSampledAmongDirtyPages) {
  const auto whole = whole_sample(sample_, memory_);
  std::mt19937 random(5);
  for (int round = 0; round < 50; ++round) {
    auto dirty = bitmaps(memory_), found = bitmaps(memory_);
    for (std::size_t block = 0; block < memory_.block_count(); ++block) {
      const std::uint64_t pages = memory_.block(block).pages();
      for (std::uint64_t i = random() % 40; i > 0; --i) {
        const std::uint64_t first = random() % pages;
        dirty[block].set(first, std::min<std::uint64_t>(1 + random() % 50, pages - first));
      }
    }
    sample_.add_sampled(dirty, found);
    for (std::size_t block = 0; block < memory_.block_count(); ++block) {
      for (std::uint64_t page = 0; page < memory_.block(block).pages(); ++page)
        ASSERT_EQ(found[block].test(page), whole[block].test(page) && dirty[block].test(page));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Groups, PageSampleTest, ::testing::Values(1, 2, 16, 63, 2000));

// Of how many bytes the kernel has allocated pages for the guest's memfd.
std::uint64_t allocated_bytes(pid_t pid) {
  std::uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
    struct stat status = {};
    const bool is_ram =
        std::filesystem::read_symlink(entry.path()).string().find("guest-ram") != std::string::npos;
    if (is_ram && ::stat(entry.path().c_str(), &status) == 0)
      bytes += static_cast<std::uint64_t>(status.st_blocks) * 512;
  }
  return bytes;
}

// INVARIANT of an estimate: a guest has no more memory afterwards than before.
TEST(PageSample, ReadsWhatIsThereAndAllocatesNothing) {
  ChildGuest guest({{Backing::memfd, 4000}, {Backing::private_anonymous, 4000}});
  for (std::size_t block : {0, 1}) guest.write(block, 1000, 500, 3);
  const GuestMemory memory(guest.pid(), guest.blocks());
  const auto present = present_pages(memory);
  for (std::size_t block : {0, 1}) {
    EXPECT_EQ(present[block].count(), 500u);
    EXPECT_TRUE(present[block].all_set(1000, 500));
  }
  const std::uint64_t before = allocated_bytes(guest.pid());
  EXPECT_EQ(before, 500 * kPageSize);
  PageSample sample(memory, 4);
  sample.read_bases(present);
  EXPECT_EQ(allocated_bytes(guest.pid()), before);
  const auto whole = whole_sample(sample, memory);
  std::vector<std::byte> expected(kPageSize);
  for (std::size_t block : {0, 1}) {
    for (std::uint64_t page = 0; page < 4000; ++page) {
      if (!whole[block].test(page)) continue;
      std::fill(expected.begin(), expected.end(), std::byte{0});
      if (page >= 1000 && page < 1500) ChildGuest::fill(expected.data(), page, 3);
      ASSERT_TRUE(std::equal(expected.begin(), expected.end(), sample.base(block, page))) << page;
    }
  }
}

}  // namespace
}  // namespace colo
