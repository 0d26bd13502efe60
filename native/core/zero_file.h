// Whether a disk image or a block device has ever been used.
#pragma once

#include <cstdint>

namespace colo {

// True when every byte of the file or block device reads as zero. Holes are passed over (lseek(2),
// SEEK_DATA); of the rest at most `read_bytes_max` are read: a longer look would hold the caller up, so the
// answer is false then. Throws ERR_COLO_DISK.
bool reads_as_zeros(int fd, std::uint64_t read_bytes_max);

}  // namespace colo
