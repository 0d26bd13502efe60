#include "standby_disks.h"

#include <fcntl.h>

#include <optional>
#include <utility>

#include "error.h"

namespace colo {

StandbyDisks::StandbyDisks(const std::vector<StandbyDiskOptions>& options) {
  for (const auto& [id, fd, size_bytes, calls] : options) {
    UniqueFd own(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    if (!own) throw_errno("ERR_COLO_DISK", "standby disk " + id + ": duplicating its descriptor");
    disks_.emplace_back(id, std::move(own), size_bytes, *calls);
    sizes_.push_back(size_bytes);
  }
}

void StandbyDisks::reserve(std::span<const std::byte> disk_payload) {
  for_each_disk_entry(disk_payload, [this](std::uint16_t disk, const DiskWrite& write) {
    if (write.data != nullptr) disks_[disk].reserve(write.offset, write.length);
  });
}

void StandbyDisks::apply(std::span<const std::byte> disk_payload) {
  for_each_disk_entry(disk_payload,
                      [this](std::uint16_t disk, const DiskWrite& write) { disks_[disk].apply(write); });
}

std::vector<std::byte> StandbyDisks::compare(std::span<const std::byte> hashes_payload) {
  const DiskHashesHeader header = validate_disk_hashes(hashes_payload, sizes_);
  std::vector<std::byte> differs(differs_bytes(header.count));
  disks_[header.disk].compare(header.first_block, hashes_of(hashes_payload), differs);
  return differs;
}

void StandbyDisks::sync() {
  std::optional<Error> failure;
  for (StandbyDisk& disk : disks_) {
    try {
      disk.sync();
    } catch (const Error& error) {
      if (!failure) failure = error;
    }
  }
  if (failure) throw *failure;
}

}  // namespace colo
