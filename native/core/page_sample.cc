#include "page_sample.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <span>
#include <string>

#include "error.h"
#include "unique_fd.h"

namespace colo {
namespace {

// The finalizer of splitmix64: each bit of the result depends on every bit of `x`.
std::uint64_t mixed(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Documentation/admin-guide/mm/pagemap.rst.
constexpr std::uint64_t kPresent = std::uint64_t{1} << 63, kSwapped = std::uint64_t{1} << 62;
constexpr std::size_t kEntriesPerRead = 8192;

void add_present(int pagemap, const RamBlock& block, DirtyBitmap& present) {
  std::array<std::uint64_t, kEntriesPerRead> entries;
  for (std::uint64_t page = 0; page < block.pages();) {
    const std::size_t wanted = std::min<std::uint64_t>(kEntriesPerRead, block.pages() - page);
    const std::uint64_t offset = (block.host_address / kPageSize + page) * sizeof(std::uint64_t);
    const ssize_t got =
        ::pread(pagemap, entries.data(), wanted * sizeof(std::uint64_t), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("ERR_COLO_PROCESS", "reading the page table of RAM block " + block.name);
    const std::size_t count = static_cast<std::size_t>(got) / sizeof(std::uint64_t);
    if (count == 0) throw Error("ERR_COLO_PROCESS", ESRCH, "RAM block " + block.name + " is gone");
    for (std::size_t i = 0; i < count; ++i) {
      if ((entries[i] & (kPresent | kSwapped)) != 0) present.set(page + i, 1);
    }
    page += count;
  }
}

}  // namespace

PageSample::PageSample(const GuestMemory& memory, std::uint64_t group_pages)
    : memory_(memory), group_pages_(group_pages) {
  COLO_ASSERT(group_pages > 0);
  for (std::size_t block = 0; block < memory.block_count(); ++block) {
    const std::uint64_t groups = (memory.block(block).pages() + group_pages - 1) / group_pages;
    bases_.emplace_back(groups * kPageSize, PROT_READ | PROT_WRITE);
    bases_.back().seal();
  }
}

void PageSample::read_bases(const std::vector<DirtyBitmap>& present) {
  for (std::size_t block = 0; block < memory_.block_count(); ++block) {
    const std::uint64_t pages = memory_.block(block).pages();
    for (std::uint64_t group = 0; group * group_pages_ < pages; ++group) {
      const std::uint64_t page = sampled_page(block, group);
      if (!present[block].test(page)) continue;
      memory_.read(block, page * kPageSize, {bases_[block].data() + group * kPageSize, kPageSize});
    }
  }
}

void PageSample::add_sampled(const std::vector<DirtyBitmap>& dirty, std::vector<DirtyBitmap>& sampled) const {
  std::vector<PageRun> runs;
  for (std::size_t block = 0; block < dirty.size(); ++block) {
    runs.clear();
    dirty[block].append_runs(runs);
    for (const auto& [first, count] : runs) {
      for (std::uint64_t group = first / group_pages_; group * group_pages_ < first + count; ++group) {
        const std::uint64_t page = sampled_page(block, group);
        if (page >= first && page < first + count) sampled[block].set(page, 1);
      }
    }
  }
}

std::byte* PageSample::base(std::size_t block, std::uint64_t page) {
  const std::uint64_t group = page / group_pages_;
  COLO_ASSERT(sampled_page(block, group) == page);
  return bases_[block].data() + group * kPageSize;
}

// The last group may be shorter than the others.
std::uint64_t PageSample::sampled_page(std::size_t block, std::uint64_t group) const {
  const std::uint64_t first = group * group_pages_;
  const std::uint64_t length = std::min(group_pages_, memory_.block(block).pages() - first);
  return first + mixed(block << 48 ^ group) % length;
}

std::vector<DirtyBitmap> present_pages(const GuestMemory& memory) {
  const std::string path = "/proc/" + std::to_string(memory.pid()) + "/pagemap";
  const UniqueFd pagemap(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!pagemap) throw_errno("ERR_COLO_PROCESS", path);
  std::vector<DirtyBitmap> present;
  for (std::size_t block = 0; block < memory.block_count(); ++block) {
    present.emplace_back(memory.block(block).pages());
    add_present(pagemap.get(), memory.block(block), present.back());
  }
  return present;
}

}  // namespace colo
