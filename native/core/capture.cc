#include "capture.h"

#include <sys/mman.h>

#include <algorithm>
#include <array>

#include "error.h"

namespace colo {
namespace {

constexpr std::uint64_t kPagesPerPartMin = 256;  // 1 MiB: less isn't worth waking a thread for

// Turns bitmaps into the runs that capture will copy, each with its place in staging. Returns the number of
// pages.
std::uint64_t lay_out(std::span<const DirtyBitmap> dirty, Staging& staging, std::vector<CapturedRun>& out) {
  std::vector<PageRun> runs;
  std::uint64_t pages = 0;
  for (std::size_t block = 0; block < dirty.size(); ++block) {
    runs.clear();
    dirty[block].append_runs(runs);
    for (const PageRun& run : runs) {
      out.push_back(
          {static_cast<std::uint32_t>(block), run.first, run.count, staging.data() + pages * kPageSize});
      pages += run.count;
    }
  }
  COLO_ASSERT(pages * kPageSize <= staging.capacity_bytes());
  return pages;
}

// Copies staging pages [begin, end), which lie in `runs` (in staging's order).
void copy_part(const GuestMemory& memory, std::span<const CapturedRun> runs, std::byte* staging,
               std::uint64_t begin, std::uint64_t end) {
  const auto place = [staging](const CapturedRun& run) {
    return static_cast<std::uint64_t>(run.data - staging) / kPageSize;
  };
  // The run that `begin` lies in: the last one that starts at or before it.
  auto run =
      std::upper_bound(runs.begin(), runs.end(), begin,
                       [&](std::uint64_t page, const CapturedRun& other) { return page < place(other); }) -
      1;
  std::array<PageRun, 256> batch;
  while (begin < end) {
    const std::uint64_t batch_begin = begin;
    const std::uint32_t block = run->block;
    std::size_t length = 0;
    for (; begin < end && length < batch.size() && run->block == block; ++run) {
      const std::uint64_t skipped = begin - place(*run);
      const std::uint64_t count = std::min(run->count - skipped, end - begin);
      batch[length++] = {run->first + skipped, count};
      begin += count;
    }
    memory.read_pages(block, std::span(batch.data(), length), staging + batch_begin * kPageSize);
  }
}

}  // namespace

Staging::Staging(std::uint64_t capacity_bytes, std::uint64_t resident_bytes)
    : region_(capacity_bytes, PROT_READ | PROT_WRITE, kHugePageSize),
      resident_bytes_(
          std::min<std::uint64_t>((resident_bytes + kPageSize - 1) / kPageSize * kPageSize, region_.size())),
      kept_bytes_(resident_bytes_) {
  region_.seal();
  // Only advice, refused by a kernel without transparent huge pages: fewer TLB misses and page faults while
  // copying.
  (void)::madvise(region_.data(), region_.size(), MADV_HUGEPAGE);
  for (std::uint64_t offset = 0; offset < resident_bytes_; offset += kPageSize) {
    *static_cast<volatile std::byte*>(region_.data() + offset) = std::byte{0};
  }
}

void Staging::trim(std::uint64_t used_bytes) {
  COLO_ASSERT(used_bytes <= region_.size());
  // Half of an unusual epoch is gone after eleven usual ones. Some more than was used, since no two epochs
  // are alike; and whole huge pages, since what is cut out of one comes back as small ones.
  const auto whole = [this](std::uint64_t bytes) {
    return std::min<std::uint64_t>((bytes + kHugePageSize - 1) / kHugePageSize * kHugePageSize,
                                   region_.size());
  };
  const std::uint64_t faded_bytes = (kept_bytes_ - kept_bytes_ / 16) / kHugePageSize * kHugePageSize;
  kept_bytes_ = std::max({resident_bytes_, whole(used_bytes + used_bytes / 8), faded_bytes});
  if (kept_bytes_ == region_.size()) return;
  if (::madvise(region_.data() + kept_bytes_, region_.size() - kept_bytes_, MADV_DONTNEED) != 0) {
    throw_errno("ERR_COLO_MEMORY", "giving back staging memory");
  }
}

std::uint64_t capture_pages(const GuestMemory& memory, std::span<const DirtyBitmap> dirty, Staging& staging,
                            WorkerPool& pool, std::vector<CapturedRun>& out) {
  COLO_ASSERT(dirty.size() == memory.block_count());
  const std::size_t before = out.size();
  const std::uint64_t pages = lay_out(dirty, staging, out);
  if (pages == 0) return 0;
  // More parts than threads, so that a thread that the scheduler took away holds up only a small part.
  const std::uint64_t parts =
      pool.threads() == 1 ? 1 : std::clamp<std::uint64_t>(pages / kPagesPerPartMin, 1, pool.threads() * 4);
  const std::span<const CapturedRun> runs(out.begin() + static_cast<std::ptrdiff_t>(before), out.end());
  try {
    pool.run(static_cast<unsigned>(parts), [&](unsigned part) {
      copy_part(memory, runs, staging.data(), pages * part / parts, pages * (part + 1) / parts);
    });
  } catch (const Error&) {
    out.resize(before);
    throw;
  }
  return pages;
}

}  // namespace colo
