// An export and what has been written to it, for tests.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "../core/disk_export.h"

namespace colo::testing {

inline constexpr std::uint64_t kExportSize = (4u << 20) + 512;

inline DiskLogOptions export_options() {
  DiskLogOptions options;
  options.id = "vda";
  options.size_bytes = kExportSize;
  return options;
}

class DiskExportTest : public ::testing::Test {
 protected:
  // From here on what is written can be seen.
  void begin() {
    disk_.log().begin_session(false);
    while (disk_.log().next_differing(1000).count != 0) continue;
  }
  // What the writes since the last call (or begin()) have made of a disk of zeros.
  std::vector<std::byte> taken() {
    const auto writes = disk_.log().take_first_copy_writes();
    for (const DiskWrite& write : writes->entries()) {
      if (write.data == nullptr) {
        std::memset(image_.data() + write.offset, 0, write.length);
      } else {
        std::memcpy(image_.data() + write.offset, write.data, write.length);
      }
    }
    return image_;
  }

  std::vector<std::byte> image_ = std::vector<std::byte>(kExportSize);
  std::mutex mutex_;
  std::vector<std::string> failures_;
  DiskExport disk_{export_options(),
                   {[] {},
                    [this](const std::string& reason) {
                      const std::lock_guard lock(mutex_);
                      failures_.push_back(reason);
                    }}};
};

}  // namespace colo::testing
