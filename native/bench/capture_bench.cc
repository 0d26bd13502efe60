// Capture of random dirty pages, beside its limit: a plain copy of the same pages by one thread. The argument
// is the number of threads.
#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>

#include "../core/capture.h"

namespace colo {
namespace {

constexpr std::uint64_t kRamPages = 65'536;  // 256 MiB
constexpr std::uint64_t kDirtyPages = 3'000;

// A guest in this very process, since capture only reads.
struct Guest {
  std::byte* ram;
  GuestMemory memory;
  Staging staging;
  std::vector<DirtyBitmap> dirty;
  std::vector<std::uint64_t> pages;

  explicit Guest(int flags)
      : ram(map(flags)),
        memory(::getpid(), {{"ram", reinterpret_cast<std::uint64_t>(ram), kRamPages * kPageSize}}),
        staging(memory.total_bytes(), 64u << 20),
        dirty(1, DirtyBitmap(kRamPages)) {
    std::memset(ram, 1, kRamPages * kPageSize);
    // The first copy of all RAM, which comes before the first checkpoint, has every page mapped here.
    memory.read(0, 0, {staging.data(), kRamPages * kPageSize});
    staging.trim(0);
    std::mt19937 random(1);
    while (dirty[0].count() < kDirtyPages) dirty[0].set(random() % kRamPages, 1);
    for (std::uint64_t page = 0; page < kRamPages; ++page) {
      if (dirty[0].test(page)) pages.push_back(page);
    }
  }
  ~Guest() { ::munmap(ram, kRamPages * kPageSize); }

  static std::byte* map(int flags) {
    void* const found =
        ::mmap(nullptr, kRamPages * kPageSize, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) std::abort();
    return static_cast<std::byte*>(found);
  }
};

void report(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kDirtyPages * kPageSize));
}

void copy_plainly(Guest& guest) {
  std::byte* out = guest.staging.data();
  for (const std::uint64_t page : guest.pages) {
    std::memcpy(out, guest.ram + page * kPageSize, kPageSize);
    out += kPageSize;
  }
  benchmark::ClobberMemory();
}

void BM_PlainCopy(benchmark::State& state) {
  Guest guest(MAP_SHARED);
  for (auto _ : state) copy_plainly(guest);
  report(state);
}
BENCHMARK(BM_PlainCopy)->UseRealTime();

void capture(benchmark::State& state, int flags) {
  Guest guest(flags);
  WorkerPool pool(static_cast<unsigned>(state.range(0)));
  std::vector<CapturedRun> runs;
  for (auto _ : state) {
    runs.clear();
    if (capture_pages(guest.memory, guest.dirty, guest.staging, pool, runs) != kDirtyPages) std::abort();
  }
  report(state);
}

void BM_CaptureMapped(benchmark::State& state) { capture(state, MAP_SHARED); }
BENCHMARK(BM_CaptureMapped)->Arg(1)->Arg(2)->UseRealTime();

void BM_CaptureRemote(benchmark::State& state) { capture(state, MAP_PRIVATE); }
BENCHMARK(BM_CaptureRemote)->Arg(1)->Arg(2)->UseRealTime();

// Capture and plain copy by turns, of the same pages into the same staging: where memory happens to lie makes
// more of a difference between two benchmarks than there is between the two. The time is capture's; the
// counter `of_limit` is the median of the pairs' ratios.
void BM_CaptureBesideCopy(benchmark::State& state) {
  using Clock = std::chrono::steady_clock;
  Guest guest(MAP_SHARED);
  WorkerPool pool(static_cast<unsigned>(state.range(0)));
  std::vector<CapturedRun> runs;
  std::vector<double> ratios;
  const auto seconds = [](auto&& work) {
    const auto began = Clock::now();
    work();
    return std::chrono::duration<double>(Clock::now() - began).count();
  };
  const auto capture_once = [&] {
    runs.clear();
    capture_pages(guest.memory, guest.dirty, guest.staging, pool, runs);
  };
  bool copy_first = false;
  for (auto _ : state) {
    // Who comes second finds the pages in the cache: that changes from pair to pair.
    copy_first = !copy_first;
    const double before = copy_first ? seconds([&] { copy_plainly(guest); }) : 0;
    const double captured = seconds(capture_once);
    const double copied = copy_first ? before : seconds([&] { copy_plainly(guest); });
    ratios.push_back(copied / captured);
    state.SetIterationTime(captured);
  }
  std::sort(ratios.begin(), ratios.end());
  state.counters["of_limit"] = ratios[ratios.size() / 2];
  report(state);
}
BENCHMARK(BM_CaptureBesideCopy)->Arg(1)->Arg(2)->UseManualTime();

}  // namespace
}  // namespace colo
