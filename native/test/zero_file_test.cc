#include "../core/zero_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <vector>

#include "../core/error.h"
#include "../core/unique_fd.h"

namespace colo {
namespace {

constexpr std::uint64_t kMiB = 1u << 20;

// On a real file system: tmpfs, where a memfd lives, is another one's code.
UniqueFd image(std::uint64_t size) {
  char name[] = "/tmp/colo-zero-XXXXXX";
  UniqueFd fd(::mkstemp(name));
  ::unlink(name);
  EXPECT_EQ(::ftruncate(fd.get(), static_cast<off_t>(size)), 0);
  return fd;
}

void put(const UniqueFd& fd, std::uint64_t offset, const std::vector<char>& bytes) {
  ASSERT_EQ(::pwrite(fd.get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)),
            static_cast<ssize_t>(bytes.size()));
}

TEST(ZeroFile, HolesAndWrittenZerosAreZeros) {
  EXPECT_TRUE(reads_as_zeros(image(0).get(), kMiB));
  const UniqueFd fd = image(1u << 30);
  EXPECT_TRUE(reads_as_zeros(fd.get(), 0));  // nothing needs to be read
  put(fd, 700 * kMiB, std::vector<char>(3 * kMiB, 0));
  EXPECT_TRUE(reads_as_zeros(fd.get(), 16 * kMiB));
}

TEST(ZeroFile, OneByteAnywhereIsFound) {
  for (const std::uint64_t at : {std::uint64_t{0}, 5 * kMiB + 123, 900 * kMiB - 1}) {
    const UniqueFd fd = image(900 * kMiB);
    put(fd, at, {1});
    EXPECT_FALSE(reads_as_zeros(fd.get(), 16 * kMiB)) << at;
  }
}

TEST(ZeroFile, WhatWouldTakeTooLongIsNotKnownToBeZero) {
  const UniqueFd fd = image(8 * kMiB);
  put(fd, 0, std::vector<char>(8 * kMiB, 0));
  EXPECT_TRUE(reads_as_zeros(fd.get(), 8 * kMiB));
  EXPECT_FALSE(reads_as_zeros(fd.get(), 8 * kMiB - 1));
}

TEST(ZeroFile, ReportsWhatCantBeLookedAt) {
  int pipe[2];
  ASSERT_EQ(::pipe2(pipe, O_CLOEXEC), 0);
  const UniqueFd reader(pipe[0]), writer(pipe[1]);
  EXPECT_THROW(reads_as_zeros(reader.get(), kMiB), Error);
}

}  // namespace
}  // namespace colo
