// The kernel's PAGEMAP_SCAN and the userfaultfd features that go with it: linux/fs.h and linux/userfaultfd.h
// of Linux 6.7, for headers that are older (Documentation/admin-guide/mm/pagemap.rst).
#pragma once

#include <linux/ioctl.h>
#include <linux/userfaultfd.h>

#include <cstdint>

namespace colo::pagemap {

struct Region {  // struct page_region
  std::uint64_t start, end;
  std::uint64_t categories;
};

struct ScanArguments {  // struct pm_scan_arg
  std::uint64_t size;
  std::uint64_t flags;
  std::uint64_t start, end;
  std::uint64_t walk_end;  // out: where the scan stopped, `end` unless the regions were used up
  std::uint64_t regions;   // address of an array
  std::uint64_t regions_length;
  std::uint64_t pages_max;  // 0: no limit
  std::uint64_t category_inverted, category_mask, category_any_of_mask, return_mask;
};

inline constexpr unsigned long kScan = _IOWR('f', 16, ScanArguments);

inline constexpr std::uint64_t kWriteProtectMatching = 1 << 0;  // PM_SCAN_WP_MATCHING
inline constexpr std::uint64_t kCheckWriteProtectAsync =
    1 << 1;  // PM_SCAN_CHECK_WPASYNC: EPERM where the range isn't registered so
inline constexpr std::uint64_t kIsWritten = 1 << 1;  // PAGE_IS_WRITTEN

// WP_ASYNC: the kernel itself lifts the protection on the first write, nobody reads events. WP_UNPOPULATED:
// pages that don't exist yet are protected too. WP_HUGETLBFS_SHMEM: guest RAM in a memfd or on hugetlbfs.
inline constexpr std::uint64_t kFeatureWpUnpopulated = 1 << 13;
inline constexpr std::uint64_t kFeatureWpAsync = 1 << 15;
inline constexpr std::uint64_t kFeatures = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
                                           kFeatureWpUnpopulated | kFeatureWpAsync;

}  // namespace colo::pagemap
