// Files, file systems and block devices of a test's own, and system calls that fail.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

// After the C library's headers: the kernel's define some of the same names.
#include <linux/loop.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "../core/standby_disk.h"
#include "../core/unique_fd.h"

namespace colo::testing {

using DiskBytes = std::vector<std::byte>;

// A file that has no name, in the folder for temporary ones.
inline UniqueFd unnamed_file(std::uint64_t size_bytes) {
  const char* folder = std::getenv("TMPDIR");
  UniqueFd fd(::open(folder != nullptr ? folder : "/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  EXPECT_TRUE(fd) << "O_TMPFILE: errno " << errno;
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size_bytes)), 0);
  return fd;
}

// A tmpfs that is mounted nowhere, and gone with its last descriptor.
class TinyFileSystem {
 public:
  explicit TinyFileSystem(std::uint64_t size_bytes) {
    const UniqueFd context(::fsopen("tmpfs", FSOPEN_CLOEXEC));
    const std::string size = std::to_string(size_bytes);
    EXPECT_EQ(::fsconfig(context.get(), FSCONFIG_SET_STRING, "size", size.c_str(), 0), 0);
    EXPECT_EQ(::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0), 0);
    root_.reset(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
    EXPECT_TRUE(root_) << "fsmount: errno " << errno << " (root is needed)";
  }

  UniqueFd file(const char* name, std::uint64_t size_bytes) const {
    UniqueFd fd(::openat(root_.get(), name, O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    EXPECT_TRUE(fd);
    EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size_bytes)), 0);
    return fd;
  }
  // Until nothing fits in.
  void fill() const {
    const UniqueFd fd = file("filler", 0);
    const DiskBytes page(4096, std::byte{1});
    while (::write(fd.get(), page.data(), page.size()) > 0) continue;
    EXPECT_EQ(errno, ENOSPC);
  }
  void remove_filler() const { EXPECT_EQ(::unlinkat(root_.get(), "filler", 0), 0); }

 private:
  UniqueFd root_;
};

// A block device over a file; the kernel takes it apart when its last descriptor is closed.
class LoopDevice {
 public:
  explicit LoopDevice(std::uint64_t size_bytes) {
    const UniqueFd file = unnamed_file(size_bytes), control(::open("/dev/loop-control", O_RDWR | O_CLOEXEC));
    EXPECT_TRUE(control) << "/dev/loop-control: errno " << errno << " (root and the loop driver are needed)";
    loop_config config = {};
    config.fd = static_cast<std::uint32_t>(file.get());
    config.info.lo_flags = LO_FLAGS_AUTOCLEAR;
    do {  // another process may be given the same free one
      const int number = ::ioctl(control.get(), LOOP_CTL_GET_FREE);
      path_ = "/dev/loop" + std::to_string(number);
      fd_.reset(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
      if (::ioctl(fd_.get(), LOOP_CONFIGURE, &config) == 0) return;
    } while (errno == EBUSY);
    ADD_FAILURE() << path_ << ": errno " << errno;
  }

  const std::string& path() const { return path_; }
  UniqueFd open() const { return UniqueFd(::open(path_.c_str(), O_RDWR | O_CLOEXEC)); }
  void set_read_only(bool read_only) const {
    const int value = read_only ? 1 : 0;
    EXPECT_EQ(::ioctl(fd_.get(), BLKROSET, &value), 0);
  }

 private:
  std::string path_;
  UniqueFd fd_;
};

inline UniqueFd duplicate(const UniqueFd& fd) { return UniqueFd(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0)); }

inline DiskBytes contents_of(int fd, std::uint64_t size_bytes) {
  DiskBytes bytes(size_bytes);
  EXPECT_EQ(::pread(fd, bytes.data(), size_bytes, 0), static_cast<ssize_t>(size_bytes));
  return bytes;
}

inline std::uint64_t allocated_bytes(int fd) {
  struct stat status = {};
  EXPECT_EQ(::fstat(fd, &status), 0);
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

// Carries out the entries of one DISK payload, the slow way.
inline void apply_to(std::vector<DiskBytes>& disks, std::span<const std::byte> payload) {
  for_each_disk_entry(payload, [&](std::uint16_t disk, const DiskWrite& write) {
    for (std::uint64_t i = 0; i < write.length; ++i)
      disks[disk][write.offset + i] = write.data == nullptr ? std::byte{0} : write.data[i];
  });
}

// Does what the kernel may do at any time: is interrupted, transfers less than asked.
class FaultyDiskCalls : public DiskCalls {
 public:
  explicit FaultyDiskCalls(unsigned seed) : random_(seed) {}

  ssize_t pread(int fd, void* into, std::size_t length, off_t offset) override {
    return interrupted() ? -1 : DiskCalls::pread(fd, into, shortened(length), offset);
  }
  ssize_t pwrite(int fd, const void* from, std::size_t length, off_t offset) override {
    return interrupted() ? -1 : DiskCalls::pwrite(fd, from, shortened(length), offset);
  }
  int fallocate(int fd, int mode, off_t offset, off_t length) override {
    return interrupted() ? -1 : DiskCalls::fallocate(fd, mode, offset, length);
  }
  int fdatasync(int fd) override { return interrupted() ? -1 : DiskCalls::fdatasync(fd); }

 private:
  bool interrupted() {
    errno = EINTR;
    return random_() % 4 == 0;
  }
  std::size_t shortened(std::size_t length) { return random_() % 2 == 0 ? length : random_() % length + 1; }

  std::mt19937_64 random_;
};

// Fails with the errno that is set for a call, and counts the calls.
class FailingDiskCalls : public DiskCalls {
 public:
  ssize_t pread(int fd, void* into, std::size_t length, off_t offset) override {
    return fails(read_errno) ? -1 : DiskCalls::pread(fd, into, length, offset);
  }
  ssize_t pwrite(int fd, const void* from, std::size_t length, off_t offset) override {
    ++writes;
    return fails(write_errno) ? -1 : DiskCalls::pwrite(fd, from, length, offset);
  }
  int fallocate(int fd, int mode, off_t offset, off_t length) override {
    ++((mode & FALLOC_FL_ZERO_RANGE) != 0 ? zero_ranges : reservations);
    return fails(fallocate_errno) ? -1 : DiskCalls::fallocate(fd, mode, offset, length);
  }
  off_t lseek(int fd, off_t offset, int whence) override {
    ++seeks;
    return fails(whence == SEEK_DATA ? seek_data_errno : seek_hole_errno)
               ? -1
               : DiskCalls::lseek(fd, offset, whence);
  }
  int fdatasync(int fd) override {
    ++syncs;
    return fails(sync_errno) ? -1 : DiskCalls::fdatasync(fd);
  }
  void drop_cache(int fd) override {
    ++cache_drops;
    DiskCalls::drop_cache(fd);
  }

  std::atomic<int> read_errno = 0, write_errno = 0, fallocate_errno = 0, seek_data_errno = 0,
                   seek_hole_errno = 0, sync_errno = 0;
  std::atomic<unsigned> writes = 0, reservations = 0, zero_ranges = 0, seeks = 0, syncs = 0, cache_drops = 0;

 private:
  static bool fails(int with) {
    if (with != 0) errno = with;
    return with != 0;
  }
};

}  // namespace colo::testing
