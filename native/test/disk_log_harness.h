// A disk log and the byte arrays that stand for the disks, for tests.
#pragma once

#include <algorithm>
#include <cstring>
#include <vector>

#include "../core/disk_log.h"

namespace colo::testing {

using DiskImage = std::vector<std::byte>;

inline constexpr std::uint64_t kLogSize = 12 * kDiskBlockBytes + 5000;  // the last block is shorter

inline DiskLogOptions disk_log_options(std::uint64_t size_bytes = kLogSize) {
  DiskLogOptions options;
  options.id = "disk0";
  options.size_bytes = size_bytes;
  options.stall_ms = 1;
  return options;
}

// As the standby does.
inline void apply(DiskImage& image, const DiskWrite& write) {
  if (write.data == nullptr) {
    std::memset(image.data() + write.offset, 0, write.length);
  } else {
    std::memcpy(image.data() + write.offset, write.data, write.length);
  }
}
inline void apply(DiskImage& image, const DiskWrites& writes) {
  for (const DiskWrite& write : writes.entries()) apply(image, write);
}

// What happens to a write on its way: QEMU writes the source first.
inline void write(DiskLog& log, DiskImage& source, std::uint64_t offset, std::uint64_t length,
                  std::byte value) {
  std::memset(source.data() + offset, static_cast<int>(value), length);
  if (value == std::byte{0}) return log.append_zeros(offset, length);
  WriteRoom room = log.reserve(length);
  for (const auto& piece : room.pieces) {
    if (!piece.bytes.empty()) std::memset(piece.bytes.data(), static_cast<int>(value), piece.bytes.size());
  }
  log.append(std::move(room), offset);
}

}  // namespace colo::testing
