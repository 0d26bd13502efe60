// All disks of the standby, as the stream's payloads see them: by index.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "disk_stream.h"
#include "standby_disk.h"

namespace colo {

struct StandbyDiskOptions {
  std::string id;  // for errors
  int fd = -1;     // see StandbyDisk; not owned, and may be closed once this has been opened
  std::uint64_t size_bytes = 0;
  DiskCalls* calls = &system_disk_calls();
};

// A DISK payload must have passed validate_disk_entries() with sizes(). Every function throws ERR_COLO_DISK.
// Thread rules: one thread at a time, but for reserve(), which may run beside apply() and sync().
class StandbyDisks {
 public:
  explicit StandbyDisks(const std::vector<StandbyDiskOptions>& options);

  std::span<const std::uint64_t> sizes() const { return sizes_; }

  // What apply() will need of space.
  void reserve(std::span<const std::byte> disk_payload);
  void apply(std::span<const std::byte> disk_payload);
  // The DISK_DIFFERS payload that answers a DISK_HASHES payload, which is checked: throws ERR_COLO_STREAM,
  // too.
  std::vector<std::byte> compare(std::span<const std::byte> hashes_payload);
  // Tries every disk, and throws the first failure.
  void sync();

 private:
  std::vector<StandbyDisk> disks_;
  std::vector<std::uint64_t> sizes_;
};

}  // namespace colo
