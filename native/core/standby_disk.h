// One disk of the standby: a raw file or block device that the standby's QEMU has open too, paused.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dirty_bitmap.h"
#include "disk_stream.h"
#include "unique_fd.h"

namespace colo {

// Every function throws ERR_COLO_DISK with errno and the place. One thread at a time but for reserve(), which
// may run beside apply().
class StandbyDisk {
 public:
  // `fd` is open for reading and writing (without O_DIRECT) and is taken over. `size_bytes` is what the guest
  // sees.
  StandbyDisk(UniqueFd fd, std::uint64_t size_bytes);

  std::uint64_t size_bytes() const;

  // Makes sure that a write of this range can't fail for want of space (fallocate(2), KEEP_SIZE, whole blocks;
  // each block once). INVARIANT 2: asked for before RECEIVED, so that a commit has nothing left to refuse. What
  // the disk holds doesn't change. On a block device, or where the file system can't, there is nothing to do.
  void reserve(std::uint64_t offset, std::uint64_t length);

  // Zeros are written only where there is data: a hole stays a hole and what is reserved stays reserved.
  void apply(const DiskWrite& write);

  // One bit a block, as DISK_DIFFERS has it.
  void compare(std::uint64_t first_block, std::span<const BlockHash> hashes, std::span<std::byte> differs);

  // Whether every byte reads as zero.
  // Durable: returns when all that was applied is on the medium (fdatasync).
  void sync();
};

}  // namespace colo
