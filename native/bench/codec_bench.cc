// The page codec beside its limit: a plain comparison (memcmp) of the same pages, scattered over a guest that
// fits in no cache.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "../core/page_delta.h"

namespace colo {
namespace {

constexpr std::uint64_t kGuestPages = 65536;  // 256 MiB
constexpr std::uint64_t kDirtyPages = 16384;  // captured side by side, as in staging

// A shadow, and captured pages from random places of it of which `changed_lines` lines differ.
struct World {
  explicit World(std::size_t changed_lines)
      : shadow(kGuestPages * kPageSize), captured(kDirtyPages * kPageSize) {
    std::mt19937_64 random(1);
    for (std::size_t i = 0; i < shadow.size(); i += 8) {
      const std::uint64_t value = random() | 1;
      std::memcpy(shadow.data() + i, &value, 8);
    }
    std::vector<std::uint64_t> all(kGuestPages);
    for (std::uint64_t page = 0; page < kGuestPages; ++page) all[page] = page;
    std::shuffle(all.begin(), all.end(), random);
    places.assign(all.begin(), all.begin() + kDirtyPages);
    std::sort(places.begin(), places.end());
    for (std::uint64_t i = 0; i < kDirtyPages; ++i) {
      std::memcpy(page(i), base(i), kPageSize);
      for (std::size_t line = 0; line < changed_lines; ++line)
        page(i)[(line * 29 % kLinesPerPage) * kLineSize] ^= std::byte{1};
    }
  }

  std::byte* page(std::uint64_t i) { return captured.data() + i * kPageSize; }
  std::byte* base(std::uint64_t i) { return shadow.data() + places[i] * kPageSize; }

  // Encoding makes the shadow equal to the captured pages; this changes the same lines of these once more.
  void differ_again(std::size_t changed_lines) {
    for (std::uint64_t i = 0; i < kDirtyPages; ++i) {
      for (std::size_t line = 0; line < changed_lines; ++line)
        page(i)[(line * 29 % kLinesPerPage) * kLineSize] ^= std::byte{2};
    }
  }

  std::vector<std::byte> shadow, captured;
  std::vector<std::uint64_t> places;
};

void set_bytes(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kDirtyPages * kPageSize));
}

void encode(benchmark::State& state, const PageKernel& kernel) {
  const auto changed = static_cast<std::size_t>(state.range(0));
  World world(changed);
  EntryWriter writer(256u << 10, 512);
  PageCounts counts;
  for (auto _ : state) {
    for (std::uint64_t i = 0; i < kDirtyPages; ++i) {
      if (!writer.has_room()) writer.clear();
      if (i + 1 < kDirtyPages) prefetch_page(world.base(i + 1));
      encode_page(writer, kernel, 0, world.places[i], world.page(i), world.base(i), counts);
    }
    state.PauseTiming();
    world.differ_again(changed);
    state.ResumeTiming();
  }
  set_bytes(state);
}

void limit_memcmp(benchmark::State& state) {
  World world(0);
  for (auto _ : state) {
    int differences = 0;
    for (std::uint64_t i = 0; i < kDirtyPages; ++i)
      differences += std::memcmp(world.page(i), world.base(i), kPageSize) != 0;
    benchmark::DoNotOptimize(differences);
  }
  set_bytes(state);
}
BENCHMARK(limit_memcmp)->Unit(benchmark::kMillisecond);

void decode(benchmark::State& state) {
  const auto changed = static_cast<std::size_t>(state.range(0));
  World world(changed);
  EntryWriter writer(std::size_t{kDirtyPages} * (kPageSize + 64), kDirtyPages * 2 + 2);
  PageCounts counts;
  for (std::uint64_t i = 0; i < kDirtyPages; ++i) {
    encode_page(writer, best_page_kernel(), 0, world.places[i], world.page(i), world.base(i), counts);
  }
  std::vector<std::byte> payload;
  for (const iovec& piece : writer.pieces()) {
    const auto* from = static_cast<const std::byte*>(piece.iov_base);
    payload.insert(payload.end(), from, from + piece.iov_len);
  }
  EntrySink sink;
  sink.write = [&](std::uint16_t, MemoryWrite write) {
    std::memcpy(world.shadow.data() + write.offset, write.data, write.length);
  };
  sink.zero_run = [&](std::uint16_t, PageRun run) {
    std::memset(world.shadow.data() + run.first * kPageSize, 0, run.count * kPageSize);
  };
  const std::uint64_t block_pages[] = {kGuestPages};
  for (auto _ : state) {
    benchmark::DoNotOptimize(validate_entries(payload, block_pages, true));
    decode_entries(payload, sink);
  }
  set_bytes(state);
}
BENCHMARK(decode)->ArgName("changed_lines")->Arg(1)->Arg(8)->Arg(64)->Unit(benchmark::kMillisecond);

[[maybe_unused]] const bool registered = [] {
  for (const PageKernel& kernel : page_kernels()) {
    benchmark::RegisterBenchmark((std::string("encode/") + kernel.name).c_str(),
                                 [&kernel](benchmark::State& state) { encode(state, kernel); })
        ->ArgName("changed_lines")
        ->Arg(0)
        ->Arg(1)
        ->Arg(8)
        ->Arg(32)
        ->Arg(64)
        ->Unit(benchmark::kMillisecond);
  }
  return true;
}();

}  // namespace
}  // namespace colo
