// One disk of the standby: a raw file or block device that the standby's QEMU has open too, paused.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dirty_bitmap.h"
#include "disk_stream.h"
#include "error.h"
#include "unique_fd.h"

namespace colo {

// The system calls behind StandbyDisk, as a seam: tests put errors, interruptions and short transfers in at
// any place.
class DiskCalls {
 public:
  virtual ~DiskCalls() = default;
  virtual ssize_t pread(int fd, void* into, std::size_t length, off_t offset);
  virtual ssize_t pwrite(int fd, const void* from, std::size_t length, off_t offset);
  virtual int fallocate(int fd, int mode, off_t offset, off_t length);
  virtual off_t lseek(int fd, off_t offset, int whence);  // SEEK_DATA and SEEK_HOLE
  virtual int fdatasync(int fd);
  virtual void drop_cache(int fd);  // of what is clean: posix_fadvise(2), which may do nothing
};
DiskCalls& system_disk_calls();

// Every function throws ERR_COLO_DISK with errno, the disk and the place. Ranges lie inside the disk
// (asserted). Thread rules: one thread at a time, but for reserve(), which may run beside apply() and sync().
class StandbyDisk {
 public:
  // `fd` is open for reading and writing, without O_DIRECT and O_APPEND, and is at least `size_bytes` long,
  // which is what the guest sees: anything else is refused. `id` is for errors.
  StandbyDisk(std::string id, UniqueFd fd, std::uint64_t size_bytes, DiskCalls& calls = system_disk_calls());

  std::uint64_t size_bytes() const { return size_bytes_; }

  // Makes sure that a write of data to this range can't fail for want of space: fallocate(2) of whole blocks,
  // of each block once. INVARIANT 2: asked for before RECEIVED, so that a commit has nothing left to refuse.
  // What the disk holds doesn't change. On a block device, and where the file system can't, there is nothing
  // to do; a file system that copies on write promises less than this.
  void reserve(std::uint64_t offset, std::uint64_t length);

  // Zeros are written only where there is data: a hole stays a hole, and what is reserved stays reserved.
  void apply(const DiskWrite& write);

  // Sets bit i of `differs` (as DISK_DIFFERS has it: differs_bytes() long) where block `first_block` + i
  // isn't what hashes[i] says, and clears the others. Holes aren't read.
  void compare(std::uint64_t first_block, std::span<const BlockHash> hashes, std::span<std::byte> differs);

  // Durable: returns when all that was applied is on the medium (fdatasync). A failure is for good: the
  // kernel tells of a write that was lost on its way to the medium only once. It goes on showing what was
  // lost from its cache, as clean: INVARIANT 3: that is dropped, so that the next compare() reads the medium.
  void sync();

 private:
  std::string place(const char* doing, std::uint64_t offset, std::uint64_t length) const;
  [[noreturn]] void fail(const char* doing, std::uint64_t offset, std::uint64_t length) const;
  void require_inside(std::uint64_t offset, std::uint64_t length) const;
  void reserve_run(PageRun blocks);
  void write(std::uint64_t offset, std::span<const std::byte> bytes);
  void write_zeros(std::uint64_t offset, std::uint64_t length);
  void start_write_back();
  void read(std::uint64_t offset, std::span<std::byte> bytes);
  struct Extent {
    std::uint64_t begin = 0, end = 0;
  };
  // The first range with data that ends behind `offset`; empty and at the end of the disk when there is none.
  Extent next_data(std::uint64_t offset);
  Extent find_data(std::uint64_t offset);

  std::string id_;
  UniqueFd fd_;
  std::uint64_t size_bytes_;
  DiskCalls& calls_;
  bool can_reserve_ = true;  // of reserve()'s thread, like the next
  DirtyBitmap reserved_;     // blocks
  // What find_data() has found last. Nobody makes holes here, so it stays true, and where a file has no holes
  // but a million extents, the file system doesn't look at all of them for each write.
  Extent known_data_;
  std::unique_ptr<std::byte[]> block_;  // what compare() has read
  std::optional<Error> sync_failure_;
  std::uint64_t unwritten_bytes_ = 0;  // applied since write-back was started last
};

}  // namespace colo
