// What the standby does to its disks beside its limits: writes beside plain pwrite(2), the comparison beside
// reading and hashing.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "../core/disk_stream.h"
#include "../core/error.h"
#include "../core/standby_disk.h"
#include "../core/standby_disks.h"
#include "../core/unique_fd.h"

namespace colo {
namespace {

constexpr std::uint64_t kSize = 256u << 20;
constexpr std::size_t kWriteBytes = 4096;
constexpr std::size_t kWrites = 2048;  // 8 MiB, a busy guest's epoch

// In the page cache alone: write-back would come and go as it likes.
UniqueFd file_in_memory() {
  UniqueFd fd(::memfd_create("disk", MFD_CLOEXEC));
  COLO_ASSERT(::ftruncate(fd.get(), kSize) == 0);
  return fd;
}

// Data all over.
UniqueFd full_file(UniqueFd fd = file_in_memory()) {
  const std::vector<std::byte> data(1u << 20, std::byte{1});
  for (std::uint64_t at = 0; at < kSize; at += data.size()) {
    COLO_ASSERT(::pwrite(fd.get(), data.data(), data.size(), static_cast<off_t>(at)) ==
                static_cast<ssize_t>(data.size()));
  }
  return fd;
}

std::vector<std::uint64_t> offsets(bool random) {
  std::mt19937_64 generator(1);
  std::vector<std::uint64_t> all;
  for (std::size_t i = 0; i < kWrites; ++i)
    all.push_back((random ? generator() % (kSize / kWriteBytes) : i) * kWriteBytes);
  return all;
}

void set_bytes(benchmark::State& state, std::uint64_t bytes) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * bytes));
}

void limit_pwrite(benchmark::State& state) {
  const UniqueFd fd = full_file();
  const std::vector<std::byte> data(kWrites * kWriteBytes, std::byte{2});
  const std::vector<std::uint64_t> all = offsets(state.range(0) != 0);
  for (auto _ : state) {
    for (std::size_t i = 0; i < kWrites; ++i) {
      COLO_ASSERT(::pwrite(fd.get(), data.data() + i * kWriteBytes, kWriteBytes,
                           static_cast<off_t>(all[i])) == kWriteBytes);
    }
  }
  set_bytes(state, kWrites * kWriteBytes);
}
BENCHMARK(limit_pwrite)->ArgName("random")->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

// The payloads of an epoch, as they are staged.
std::vector<std::vector<std::byte>> payloads(bool random) {
  const std::vector<std::byte> data(kWriteBytes, std::byte{2});
  std::vector<std::vector<std::byte>> all;
  DiskEntryWriter writer(1u << 20, 2 * kWrites);
  const auto finish = [&] {
    std::vector<std::byte> payload;
    for (const iovec& piece : writer.pieces()) {
      const auto* from = static_cast<const std::byte*>(piece.iov_base);
      payload.insert(payload.end(), from, from + piece.iov_len);
    }
    all.push_back(std::move(payload));
    writer.clear();
  };
  for (const std::uint64_t offset : offsets(random)) {
    if (!writer.has_room()) finish();
    writer.add(0, {offset, kWriteBytes, data.data()});
  }
  finish();
  return all;
}

// Checked, reserved (again: that is the steady state) and applied.
void standby_applies(benchmark::State& state) {
  const UniqueFd fd = full_file();
  StandbyDisks disks({{"disk", fd.get(), kSize}});
  const auto epoch = payloads(state.range(0) != 0);
  for (auto _ : state) {
    for (const auto& payload : epoch) {
      validate_disk_entries(payload, disks.sizes());
      disks.reserve(payload);
    }
    for (const auto& payload : epoch) disks.apply(payload);
  }
  set_bytes(state, kWrites * kWriteBytes);
}
BENCHMARK(standby_applies)->ArgName("random")->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

constexpr std::uint64_t kCompared = 16u << 20;  // a window of the copy

void limit_read_and_hash(benchmark::State& state) {
  const UniqueFd fd = full_file();
  const auto block = std::make_unique<std::byte[]>(kDiskBlockBytes);
  for (auto _ : state) {
    for (std::uint64_t at = 0; at < kCompared; at += kDiskBlockBytes) {
      COLO_ASSERT(::pread(fd.get(), block.get(), kDiskBlockBytes, static_cast<off_t>(at)) ==
                  static_cast<ssize_t>(kDiskBlockBytes));
      benchmark::DoNotOptimize(hash_of_block({block.get(), kDiskBlockBytes}));
    }
  }
  set_bytes(state, kCompared);
}
BENCHMARK(limit_read_and_hash)->Unit(benchmark::kMicrosecond);

void compare(benchmark::State& state, UniqueFd fd) {
  StandbyDisk disk("disk", std::move(fd), kSize);
  const std::vector<BlockHash> hashes(kCompared / kDiskBlockBytes);
  std::vector<std::byte> differs(differs_bytes(static_cast<std::uint32_t>(hashes.size())));
  for (auto _ : state) disk.compare(0, hashes, differs);
  set_bytes(state, kCompared);
}
void standby_compares_data(benchmark::State& state) { compare(state, full_file()); }
BENCHMARK(standby_compares_data)->Unit(benchmark::kMicrosecond);

void standby_compares_holes(benchmark::State& state) { compare(state, file_in_memory()); }
BENCHMARK(standby_compares_holes)->Unit(benchmark::kMicrosecond);

// A guest that clears what had data, where the file system can help.
void standby_clears(benchmark::State& state) {
  StandbyDisk disk("disk", full_file(UniqueFd(::open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600))),
                   kSize);
  const std::vector<std::byte> data(kDiskEntryBytesMax, std::byte{1});
  const auto length = static_cast<std::uint64_t>(state.range(0));
  for (auto _ : state) {
    state.PauseTiming();
    for (std::uint64_t at = 0; at < length; at += data.size())
      disk.apply({at, std::min<std::uint64_t>(data.size(), length - at), data.data()});
    state.ResumeTiming();
    disk.apply({0, length, nullptr});
  }
  set_bytes(state, length);
}
BENCHMARK(standby_clears)
    ->ArgName("bytes")
    ->Arg(64 << 10)
    ->Arg(1 << 20)
    ->Arg(64 << 20)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace colo
