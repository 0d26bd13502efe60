#include "standby_disk.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

// After the C library's headers: the kernel's define some of the same names.
#include <linux/fs.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace colo {
namespace {

constexpr std::uint64_t kWriteBackBytes = 16u << 20;  // applied between two starts of write-back
// Writing fewer zeros than this is cheaper than having the file system change its map.
constexpr std::uint64_t kZeroRangeBytesMin = 256u << 10;
constexpr std::size_t kZeroBytes = 64u << 10;
const std::byte zero_bytes[kZeroBytes] = {};
static_assert(kZeroBytes >= kDiskBlockBytes);  // hash_of_zeros()

BlockHash hash_of_zeros(std::uint64_t length) { return hash_of_block({zero_bytes, length}); }

std::uint64_t length_of(int fd) {
  struct stat status = {};
  if (::fstat(fd, &status) != 0) throw_errno("ERR_COLO_DISK", "looking at it");
  if (S_ISREG(status.st_mode)) return static_cast<std::uint64_t>(status.st_size);
  if (!S_ISBLK(status.st_mode)) throw Error("ERR_COLO_DISK", 0, "it is neither a file nor a block device");
  std::uint64_t bytes = 0;
  if (::ioctl(fd, BLKGETSIZE64, &bytes) != 0) throw_errno("ERR_COLO_DISK", "asking for its size");
  return bytes;
}

void require_usable(int fd, std::uint64_t size_bytes) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0) throw_errno("ERR_COLO_DISK", "looking at it");
  if ((flags & O_ACCMODE) != O_RDWR || (flags & (O_DIRECT | O_APPEND)) != 0) {
    throw Error("ERR_COLO_DISK", 0, "it must be open for reading and writing, without O_DIRECT and O_APPEND");
  }
  const std::uint64_t length = length_of(fd);
  if (length < size_bytes) {
    throw Error("ERR_COLO_DISK", 0,
                "it has " + std::to_string(length) + " bytes and the guest's disk " +
                    std::to_string(size_bytes) + ": make it as long");
  }
}

bool is_want_of_space(int sys_errno) { return sys_errno == ENOSPC || sys_errno == EDQUOT; }

}  // namespace

ssize_t DiskCalls::pread(int fd, void* into, std::size_t length, off_t offset) {
  return ::pread(fd, into, length, offset);
}
ssize_t DiskCalls::pwrite(int fd, const void* from, std::size_t length, off_t offset) {
  return ::pwrite(fd, from, length, offset);
}
int DiskCalls::fallocate(int fd, int mode, off_t offset, off_t length) {
  return ::fallocate(fd, mode, offset, length);
}
off_t DiskCalls::lseek(int fd, off_t offset, int whence) { return ::lseek(fd, offset, whence); }
int DiskCalls::fdatasync(int fd) { return ::fdatasync(fd); }
void DiskCalls::drop_cache(int fd) { ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); }

DiskCalls& system_disk_calls() {
  static DiskCalls calls;
  return calls;
}

StandbyDisk::StandbyDisk(std::string id, UniqueFd fd, std::uint64_t size_bytes, DiskCalls& calls)
    : id_(std::move(id)),
      fd_(std::move(fd)),
      size_bytes_(size_bytes),
      calls_(calls),
      reserved_(disk_blocks(size_bytes)),
      block_(std::make_unique_for_overwrite<std::byte[]>(kDiskBlockBytes)) {
  try {
    require_usable(fd_.get(), size_bytes);
  } catch (const Error& error) {
    throw Error(error.code(), error.sys_errno(), "standby disk " + id_ + ": " + error.what());
  }
}

std::string StandbyDisk::place(const char* doing, std::uint64_t offset, std::uint64_t length) const {
  return "standby disk " + id_ + ": " + doing + " " + std::to_string(length) + " bytes at byte " +
         std::to_string(offset);
}

// After a call that failed.
void StandbyDisk::fail(const char* doing, std::uint64_t offset, std::uint64_t length) const {
  const int sys_errno = errno;
  const std::string what = is_want_of_space(sys_errno)
                               ? place("no space left for", offset, length) + ": make room where it is stored"
                               : place(doing, offset, length) + ": " + std::strerror(sys_errno);
  throw Error("ERR_COLO_DISK", sys_errno, what);
}

void StandbyDisk::require_inside(std::uint64_t offset, std::uint64_t length) const {
  COLO_ASSERT(length > 0 && offset < size_bytes_ && length <= size_bytes_ - offset);
}

// --- space ---

void StandbyDisk::reserve(std::uint64_t offset, std::uint64_t length) {
  require_inside(offset, length);
  const std::uint64_t end = disk_blocks(offset + length);
  for (std::uint64_t block = offset / kDiskBlockBytes; can_reserve_ && block < end;) {
    PageRun run = {block, 0};
    while (run.first + run.count < end && !reserved_.test(run.first + run.count)) ++run.count;
    if (run.count > 0) reserve_run(run);
    block = run.first + run.count + 1;
  }
}

void StandbyDisk::reserve_run(PageRun blocks) {
  const std::uint64_t offset = blocks.first * kDiskBlockBytes;
  const std::uint64_t length = std::min(blocks.count * kDiskBlockBytes, size_bytes_ - offset);
  while (calls_.fallocate(fd_.get(), FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                          static_cast<off_t>(length)) != 0) {
    if (errno == EINTR) continue;
    if (errno != EOPNOTSUPP && errno != ENOSYS) fail("reserving", offset, length);
    can_reserve_ = false;
    return;
  }
  reserved_.set(blocks.first, blocks.count);
}

// --- writing ---

void StandbyDisk::apply(const DiskWrite& disk_write) {
  require_inside(disk_write.offset, disk_write.length);
  if (disk_write.data != nullptr) return write(disk_write.offset, {disk_write.data, disk_write.length});
  const std::uint64_t end = disk_write.offset + disk_write.length;
  for (std::uint64_t offset = disk_write.offset; offset < end;) {
    const Extent data = next_data(offset);
    const std::uint64_t begin = std::max(offset, data.begin);
    offset = std::min(end, data.end);
    if (begin < offset) write_zeros(begin, offset - begin);
  }
}

void StandbyDisk::write(std::uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t written = calls_.pwrite(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail("writing", offset, bytes.size());
    unwritten_bytes_ += static_cast<std::uint64_t>(written);
    offset += static_cast<std::uint64_t>(written);
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
  if (unwritten_bytes_ >= kWriteBackBytes) start_write_back();
}

// A take-over waits for sync(): what the page cache has taken by then should be on its way already. An error
// isn't told here, sync() is told of it.
void StandbyDisk::start_write_back() {
  unwritten_bytes_ = 0;
  ::sync_file_range(fd_.get(), 0, 0, SYNC_FILE_RANGE_WRITE);
}

void StandbyDisk::write_zeros(std::uint64_t offset, std::uint64_t length) {
  // ZERO_RANGE keeps what is allocated, unlike PUNCH_HOLE. Where it can't be had, or fails, writing says why.
  if (length >= kZeroRangeBytesMin &&
      calls_.fallocate(fd_.get(), FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                       static_cast<off_t>(length)) == 0) {
    return;
  }
  while (length > 0) {
    const std::uint64_t piece = std::min<std::uint64_t>(length, kZeroBytes);
    write(offset, {zero_bytes, piece});
    offset += piece;
    length -= piece;
  }
}

StandbyDisk::Extent StandbyDisk::next_data(std::uint64_t offset) {
  if (offset >= known_data_.begin && offset < known_data_.end) return known_data_;
  return known_data_ = find_data(offset);
}

StandbyDisk::Extent StandbyDisk::find_data(std::uint64_t offset) {
  const off_t begin = calls_.lseek(fd_.get(), static_cast<off_t>(offset), SEEK_DATA);
  if (begin < 0) {
    if (errno == ENXIO) return {size_bytes_, size_bytes_};
    if (errno != EINVAL && errno != EOPNOTSUPP) fail("looking for data in", offset, size_bytes_ - offset);
    return {offset, size_bytes_};  // a block device, or a file system that doesn't know
  }
  const off_t end = calls_.lseek(fd_.get(), begin, SEEK_HOLE);
  if (end < 0) fail("looking for holes in", offset, size_bytes_ - offset);
  if (end == begin) return {offset, size_bytes_};  // somebody else has made a hole in between
  return {static_cast<std::uint64_t>(begin), std::min(static_cast<std::uint64_t>(end), size_bytes_)};
}

// --- comparing ---

void StandbyDisk::read(std::uint64_t offset, std::span<std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t got = calls_.pread(fd_.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("reading", offset, bytes.size());
    if (got == 0) {
      throw Error("ERR_COLO_DISK", 0,
                  place("reading", offset, bytes.size()) + ": it has become shorter than the guest's disk");
    }
    offset += static_cast<std::uint64_t>(got);
    bytes = bytes.subspan(static_cast<std::size_t>(got));
  }
}

void StandbyDisk::compare(std::uint64_t first_block, std::span<const BlockHash> hashes,
                          std::span<std::byte> differs) {
  COLO_ASSERT(differs.size() == differs_bytes(static_cast<std::uint32_t>(hashes.size())));
  COLO_ASSERT(!hashes.empty() && first_block + hashes.size() <= disk_blocks(size_bytes_));
  static const BlockHash whole_zeros = hash_of_zeros(kDiskBlockBytes);
  std::fill(differs.begin(), differs.end(), std::byte{0});
  Extent data;
  for (std::size_t i = 0; i < hashes.size(); ++i) {
    const std::uint64_t offset = (first_block + i) * kDiskBlockBytes;
    const std::uint64_t length = std::min(kDiskBlockBytes, size_bytes_ - offset);
    if (data.end <= offset) data = next_data(offset);
    BlockHash hash;
    if (data.begin >= offset + length) {
      hash = length == kDiskBlockBytes ? whole_zeros : hash_of_zeros(length);
    } else {
      const std::span<std::byte> block(block_.get(), length);
      read(offset, block);
      hash = hash_of_block(block);
    }
    if (hash != hashes[i]) differs[i / 8] |= std::byte(1 << i % 8);
  }
}

void StandbyDisk::sync() {
  if (sync_failure_) throw *sync_failure_;
  while (calls_.fdatasync(fd_.get()) != 0) {
    if (errno == EINTR) continue;
    const int sys_errno = errno;
    calls_.drop_cache(fd_.get());
    sync_failure_.emplace("ERR_COLO_DISK", sys_errno,
                          "standby disk " + id_ + ": syncing: " + std::strerror(sys_errno) +
                              ": what was written is lost in part, copy the disk again");
    throw *sync_failure_;
  }
}

}  // namespace colo
