#include "zero_file.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <memory>

#include "error.h"

namespace colo {
namespace {

constexpr std::size_t kPieceBytes = 1u << 20;

bool all_zero(const std::byte* bytes, std::size_t length) {
  return std::all_of(bytes, bytes + length, [](std::byte byte) { return byte == std::byte{0}; });
}

// The next place from `from` on where there may be data, or `size`.
off_t next_data(int fd, off_t from, off_t size) {
  const off_t at = ::lseek(fd, from, SEEK_DATA);
  if (at >= 0) return at;
  if (errno == ENXIO) return size;
  if (errno == EINVAL || errno == EOPNOTSUPP) return from;  // this file system can't tell
  throw_errno("ERR_COLO_DISK", "looking for data on a disk");
}

}  // namespace

bool reads_as_zeros(int fd, std::uint64_t read_bytes_max) {
  const off_t size = ::lseek(fd, 0, SEEK_END);
  if (size < 0) throw_errno("ERR_COLO_DISK", "looking for the end of a disk");
  const auto piece = std::make_unique_for_overwrite<std::byte[]>(kPieceBytes);
  std::uint64_t left = read_bytes_max;
  for (off_t at = next_data(fd, 0, size); at < size; at = next_data(fd, at, size)) {
    if (left == 0) return false;
    const ssize_t got = ::pread(fd, piece.get(), std::min<std::uint64_t>(kPieceBytes, left), at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("ERR_COLO_DISK", "reading a disk");
    if (got == 0) return true;
    if (!all_zero(piece.get(), static_cast<std::size_t>(got))) return false;
    left -= static_cast<std::uint64_t>(got);
    at += got;
  }
  return true;
}

}  // namespace colo
