#include "../core/standby_disk.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>

#include "../core/error.h"
#include "test_disks.h"

namespace colo {
namespace {

using testing::allocated_bytes;
using testing::contents_of;
using testing::DiskBytes;
using testing::duplicate;
using testing::FailingDiskCalls;
using testing::FaultyDiskCalls;
using testing::LoopDevice;
using testing::TinyFileSystem;
using testing::unnamed_file;

constexpr std::uint64_t kSize = 20 * kDiskBlockBytes + 1536;  // its last block is a short one

std::string failure_of(const std::function<void()>& call, int sys_errno) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_DISK");
    EXPECT_EQ(error.sys_errno(), sys_errno);
    return error.what();
  }
  return "no failure";
}

void expect_says(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << text << " / " << part;
}

DiskBytes random_bytes(std::mt19937_64& random, std::size_t length) {
  DiskBytes bytes(length);
  for (std::byte& byte : bytes) byte = std::byte(random());
  return bytes;
}

std::vector<bool> compared(StandbyDisk& disk, std::uint64_t first, std::span<const BlockHash> hashes) {
  DiskBytes bits(differs_bytes(static_cast<std::uint32_t>(hashes.size())), std::byte{0xff});
  disk.compare(first, hashes, bits);
  std::vector<bool> differs;
  for (std::size_t i = 0; i < bits.size() * 8; ++i)
    differs.push_back((bits[i / 8] & std::byte(1 << i % 8)) != std::byte{0});
  EXPECT_EQ(std::count(differs.begin() + static_cast<std::ptrdiff_t>(hashes.size()), differs.end(), true), 0);
  differs.resize(hashes.size());
  return differs;
}

std::vector<BlockHash> hashes_of_blocks(const DiskBytes& bytes) {
  std::vector<BlockHash> hashes;
  for (std::size_t at = 0; at < bytes.size(); at += kDiskBlockBytes)
    hashes.push_back(
        hash_of_block(std::span(bytes).subspan(at, std::min(kDiskBlockBytes, bytes.size() - at))));
  return hashes;
}

// Random writes, zeros and reservations against a plain array, and the comparison against a plain hash.
void run_against_a_model(UniqueFd fd, DiskCalls& calls) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const UniqueFd mine = duplicate(fd);
  StandbyDisk disk("a", std::move(fd), kSize, calls);
  DiskBytes model(kSize);
  const DiskBytes data = random_bytes(random, 2 * kDiskEntryBytesMax);
  for (int round = 0; round < 150; ++round) {
    const std::uint64_t offset = random() % 3 == 0 ? random() % 21 * kDiskBlockBytes : random() % kSize;
    std::uint64_t length = random() % (random() % 4 == 0 ? kSize : 10000) + 1;
    length = std::min(length, kSize - offset);
    const bool zeros = random() % 3 == 0;
    if (!zeros) length = std::min(length, kDiskEntryBytesMax);
    const DiskWrite write = {offset, length, zeros ? nullptr : data.data() + random() % kDiskEntryBytesMax};
    if (random() % 2 == 0) {
      disk.reserve(offset, length);
      ASSERT_EQ(contents_of(mine.get(), kSize), model) << "reserving changed the disk";
    }
    disk.apply(write);
    if (zeros) std::memset(model.data() + offset, 0, length);
    if (!zeros) std::memcpy(model.data() + offset, write.data, length);
    ASSERT_EQ(contents_of(mine.get(), kSize), model) << "round " << round;
    if (round % 10 != 0) continue;
    DiskBytes other = model;
    other[random() % kSize] ^= std::byte{1};
    const std::vector<BlockHash> here = hashes_of_blocks(model), there = hashes_of_blocks(other);
    const std::uint64_t first = random() % here.size(), count = random() % (here.size() - first) + 1;
    std::vector<bool> expected;
    for (std::uint64_t i = first; i < first + count; ++i) expected.push_back(here[i] != there[i]);
    ASSERT_EQ(compared(disk, first, std::span(there).subspan(first, count)), expected);
  }
  disk.sync();
}

TEST(StandbyDisk, EqualsAnArrayOnAFile) { run_against_a_model(unnamed_file(kSize), system_disk_calls()); }

TEST(StandbyDisk, EqualsAnArrayInMemory) {
  const TinyFileSystem file_system(16u << 20);
  run_against_a_model(file_system.file("disk", kSize), system_disk_calls());
}

TEST(StandbyDisk, EqualsAnArrayOnABlockDevice) {
  const LoopDevice device((kSize + 4095) / 4096 * 4096);
  run_against_a_model(device.open(), system_disk_calls());
}

TEST(StandbyDisk, EqualsAnArrayWhateverTheKernelDoesWithEachCall) {
  FaultyDiskCalls calls(std::random_device{}());
  run_against_a_model(unnamed_file(kSize), calls);
}

TEST(StandbyDisk, EqualsAnArrayWhereTheFileSystemKnowsNothing) {
  FailingDiskCalls calls;
  calls.fallocate_errno = EOPNOTSUPP;
  calls.seek_data_errno = EINVAL;
  run_against_a_model(unnamed_file(kSize), calls);
  EXPECT_EQ(calls.reservations, 1u) << "it isn't asked again";
}

TEST(StandbyDisk, HolesStayHolesAndWhatIsAllocatedStaysAllocated) {
  const UniqueFd file = unnamed_file(kSize);
  StandbyDisk disk("a", duplicate(file), kSize);
  disk.apply({0, kSize, nullptr});
  EXPECT_EQ(allocated_bytes(file.get()), 0u);
  const DiskBytes data(kDiskEntryBytesMax, std::byte{1});
  disk.apply({4 * kDiskBlockBytes, data.size(), data.data()});
  disk.reserve(15 * kDiskBlockBytes, kDiskBlockBytes);
  disk.sync();
  const std::uint64_t before = allocated_bytes(file.get());
  EXPECT_GE(before, data.size() + kDiskBlockBytes);
  disk.apply({0, kSize, nullptr});
  disk.sync();
  EXPECT_EQ(contents_of(file.get(), kSize), DiskBytes(kSize));
  EXPECT_GE(allocated_bytes(file.get()), before);
  EXPECT_LT(allocated_bytes(file.get()), kSize / 2 + kDiskEntryBytesMax);
}

TEST(StandbyDisk, LargeRunsOfZerosAreTheFileSystemsWork) {
  FailingDiskCalls calls;
  StandbyDisk disk("a", unnamed_file(kSize), kSize, calls);
  const DiskBytes data(kDiskEntryBytesMax, std::byte{1});
  disk.apply({0, data.size(), data.data()});
  const unsigned writes = calls.writes;
  disk.apply({0, kSize, nullptr});
  EXPECT_EQ(calls.zero_ranges, 1u);
  const UniqueFd memory(::memfd_create("disk", MFD_CLOEXEC));  // where there is no ZERO_RANGE
  ASSERT_EQ(::ftruncate(memory.get(), kSize), 0);
  StandbyDisk other("b", duplicate(memory), kSize, calls);
  other.apply({0, data.size(), data.data()});
  other.apply({0, kSize, nullptr});
  EXPECT_EQ(calls.zero_ranges, 2u);
  EXPECT_GT(calls.writes, writes + 2);
  EXPECT_EQ(contents_of(memory.get(), kSize), DiskBytes(kSize));
}

TEST(StandbyDisk, TheFileSystemIsAskedOnceForEachRunOfData) {
  FailingDiskCalls calls;
  const UniqueFd file = unnamed_file(kSize);
  StandbyDisk disk("a", duplicate(file), kSize, calls);
  const DiskBytes data(kDiskEntryBytesMax, std::byte{1});
  for (const std::uint64_t at : {0ul, 10 * kDiskBlockBytes}) disk.apply({at, data.size(), data.data()});
  for (std::uint64_t at = 0; at < 100; ++at) disk.apply({at * 4096, 100, nullptr});
  EXPECT_EQ(calls.seeks, 2u);  // where it begins, where it ends
  compared(disk, 0, hashes_of_blocks(contents_of(file.get(), kSize)));
  EXPECT_LE(calls.seeks, 5u);
}

TEST(StandbyDisk, EachBlockIsReservedOnce) {
  FailingDiskCalls calls;
  const UniqueFd file = unnamed_file(kSize);
  StandbyDisk disk("a", duplicate(file), kSize, calls);
  disk.reserve(3 * kDiskBlockBytes + 100, 10);
  disk.reserve(3 * kDiskBlockBytes + 5000, 4096);
  EXPECT_EQ(calls.reservations, 1u);
  EXPECT_GE(allocated_bytes(file.get()), kDiskBlockBytes);
  disk.reserve(2 * kDiskBlockBytes, 3 * kDiskBlockBytes);  // around the one that is
  EXPECT_EQ(calls.reservations, 3u);
  disk.reserve(0, kSize);
  EXPECT_EQ(calls.reservations, 5u);
  disk.reserve(0, kSize);
  EXPECT_EQ(calls.reservations, 5u);
  EXPECT_GE(allocated_bytes(file.get()), kSize);
  EXPECT_EQ(::lseek(file.get(), 0, SEEK_END), static_cast<off_t>(kSize));
}

TEST(StandbyDisk, WhatIsReservedCanBeWrittenOnAFullFileSystem) {
  const TinyFileSystem file_system(1u << 20);
  const UniqueFd file = file_system.file("disk", kSize);
  StandbyDisk disk("web1-sda", duplicate(file), kSize);
  disk.reserve(5 * kDiskBlockBytes, kDiskBlockBytes);
  file_system.fill();
  const DiskBytes data(kDiskBlockBytes, std::byte{7});
  disk.apply({5 * kDiskBlockBytes, data.size(), data.data()});
  const std::string reserving = failure_of([&] { disk.reserve(6 * kDiskBlockBytes, 1); }, ENOSPC);
  EXPECT_EQ(
      reserving,
      "standby disk web1-sda: no space left for 65536 bytes at byte 393216: make room where it is stored");
  expect_says(failure_of([&] { disk.apply({0, data.size(), data.data()}); }, ENOSPC), "no space left for");
  disk.apply({0, kSize, nullptr});  // zeros need none
  file_system.remove_filler();
  disk.reserve(6 * kDiskBlockBytes, 1);  // what has failed isn't taken for done
  file_system.fill();
  disk.apply({6 * kDiskBlockBytes, data.size(), data.data()});
  EXPECT_EQ(contents_of(file.get(), kSize)[6 * kDiskBlockBytes], std::byte{7});
}

TEST(StandbyDisk, SpaceMayBeReservedWhileWritesAreApplied) {
  const UniqueFd file = unnamed_file(kSize);
  StandbyDisk disk("a", duplicate(file), kSize);
  std::thread reserver([&disk] {
    for (std::uint64_t at = 0; at < kSize; at += 1000) disk.reserve(at, 1);
  });
  DiskBytes model(kSize);
  for (std::uint64_t at = 0; at + 1000 <= kSize; at += 1000) {
    const DiskBytes data(1000, std::byte(at / 1000 + 1));
    disk.apply({at, data.size(), data.data()});
    std::memcpy(model.data() + at, data.data(), data.size());
    if (at % 7000 == 0) disk.apply({at, 500, nullptr});
    if (at % 7000 == 0) std::memset(model.data() + at, 0, 500);
  }
  reserver.join();
  EXPECT_EQ(contents_of(file.get(), kSize), model);
}

TEST(StandbyDisk, HolesAreComparedWithoutReading) {
  FailingDiskCalls calls;
  const UniqueFd file = unnamed_file(kSize);
  StandbyDisk disk("a", duplicate(file), kSize, calls);
  DiskBytes model(kSize);
  model[9 * kDiskBlockBytes] = std::byte{1};
  calls.read_errno = EIO;
  EXPECT_EQ(compared(disk, 0, hashes_of_blocks(DiskBytes(kSize))), std::vector<bool>(21));
  const std::vector<BlockHash> last = {hashes_of_blocks(model).back()};
  EXPECT_EQ(compared(disk, 20, last), std::vector<bool>(1));
  std::vector<bool> expected(21);
  expected[9] = true;
  EXPECT_EQ(compared(disk, 0, hashes_of_blocks(model)), expected);
  disk.apply({9 * kDiskBlockBytes, 1, model.data() + 9 * kDiskBlockBytes});
  const std::string failure = failure_of([&] { compared(disk, 0, hashes_of_blocks(model)); }, EIO);
  EXPECT_EQ(failure, "standby disk a: reading 65536 bytes at byte 589824: Input/output error");
  calls.read_errno = 0;
  EXPECT_EQ(compared(disk, 0, hashes_of_blocks(model)), std::vector<bool>(21));
}

TEST(StandbyDisk, ErrorsNameTheDiskAndThePlace) {
  FailingDiskCalls calls;
  const UniqueFd file = unnamed_file(kSize);
  StandbyDisk disk("a", duplicate(file), kSize, calls);
  const DiskBytes data(100, std::byte{1});
  calls.write_errno = EIO;
  EXPECT_EQ(failure_of(
                [&] {
                  disk.apply({512, 100, data.data()});
                },
                EIO),
            "standby disk a: writing 100 bytes at byte 512: Input/output error");
  calls.write_errno = EDQUOT;
  expect_says(failure_of(
                  [&] {
                    disk.apply({512, 100, data.data()});
                  },
                  EDQUOT),
              "no space left for 100 bytes");
  calls.write_errno = 0;
  calls.fallocate_errno = EIO;
  expect_says(failure_of([&] { disk.reserve(512, 100); }, EIO),
              "reserving 65536 bytes at byte 0: Input/output");
  calls.seek_data_errno = EIO;
  expect_says(failure_of([&] { disk.apply({0, 100, nullptr}); }, EIO), "looking for data in");
  calls.seek_data_errno = 0;
  disk.apply({0, 100, data.data()});
  calls.seek_hole_errno = EIO;
  expect_says(failure_of([&] { disk.apply({0, 100, nullptr}); }, EIO), "looking for holes in");
  calls.seek_hole_errno = 0;
  ASSERT_EQ(::ftruncate(file.get(), 1000), 0);
  expect_says(failure_of([&] { compared(disk, 0, hashes_of_blocks(DiskBytes(kSize))); }, 0),
              "become shorter");
}

TEST(StandbyDisk, WriteErrorOfABlockDeviceIsReported) {
  const LoopDevice device(32 * kDiskBlockBytes);
  StandbyDisk disk("a", device.open(), kSize);
  const DiskBytes data(100, std::byte{1});
  device.set_read_only(true);
  expect_says(failure_of(
                  [&] {
                    disk.apply({512, 100, data.data()});
                  },
                  EPERM),
              "writing 100 bytes at byte 512");
  device.set_read_only(false);
  disk.apply({512, 100, data.data()});
}

// The kernel tells of a lost write once; whoever syncs again would be told that all is well.
TEST(StandbyDisk, FailedSyncIsNeverForgotten) {
  FailingDiskCalls calls;
  StandbyDisk disk("a", unnamed_file(kSize), kSize, calls);
  disk.sync();
  EXPECT_EQ(calls.cache_drops, 0u);
  calls.sync_errno = EIO;
  expect_says(failure_of([&] { disk.sync(); }, EIO),
              "standby disk a: syncing: Input/output error: what was written");
  EXPECT_EQ(calls.cache_drops, 1u) << "what is compared next is the medium, not the cache";
  calls.sync_errno = 0;
  expect_says(failure_of([&] { disk.sync(); }, EIO), "syncing");
  EXPECT_EQ(calls.syncs, 2u);
}

TEST(StandbyDisk, RefusesWhatIsNoUsableDisk) {
  const auto refusal = [](UniqueFd fd, int sys_errno = 0) {
    return failure_of([&] { StandbyDisk("a", std::move(fd), kSize); }, sys_errno);
  };
  const auto reopened = [](const UniqueFd& fd, int flags) {
    return UniqueFd(::open(("/proc/self/fd/" + std::to_string(fd.get())).c_str(), flags | O_CLOEXEC));
  };
  const UniqueFd file = unnamed_file(kSize);
  EXPECT_EQ(refusal(duplicate(file)), "no failure");
  EXPECT_EQ(refusal(unnamed_file(kSize + 1)), "no failure");
  EXPECT_EQ(refusal(unnamed_file(kSize - 1)),
            "standby disk a: it has 1312255 bytes and the guest's disk 1312256: make it as long");
  for (const int flags : {O_RDONLY, O_WRONLY, O_RDWR | O_APPEND, O_RDWR | O_DIRECT})
    expect_says(refusal(reopened(file, flags)), "without O_DIRECT and O_APPEND");
  expect_says(refusal(UniqueFd(::open("/dev/null", O_RDWR | O_CLOEXEC))),
              "neither a file nor a block device");
  const LoopDevice device(16 * kDiskBlockBytes);
  expect_says(refusal(device.open()), "it has 1048576 bytes");
  expect_says(refusal(UniqueFd(), EBADF), "Bad file descriptor");
}

TEST(StandbyDisk, RangesAreAsserted) {
  StandbyDisk disk("a", unnamed_file(kSize), kSize);
  const DiskBytes data(16);
  EXPECT_DEATH(disk.apply({kSize - 8, 9, data.data()}), "length");
  EXPECT_DEATH(disk.reserve(kSize, 1), "length");
  EXPECT_DEATH(disk.apply({0, 0, nullptr}), "length");
}

}  // namespace
}  // namespace colo
