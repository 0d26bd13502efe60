// One collect() of each tracker over 1 GiB of guest RAM, with few and with many dirty pages, beside the limit
// of comparing: a plain read of all of RAM. The arguments are the number of dirty pages and of threads. The
// guest is a child process; writing its pages isn't timed.
#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <numeric>
#include <random>

#include "../core/dirty_bitmap.h"
#include "../core/dirty_tracker.h"

namespace colo {
namespace {

constexpr std::uint64_t kRamPages = 262'144;  // 1 GiB

// A child with populated shared RAM that writes a number of random pages when told to.
class Guest {
 public:
  Guest() {
    ram_ = static_cast<std::byte*>(::mmap(nullptr, kRamPages * kPageSize, PROT_READ | PROT_WRITE,
                                          MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0));
    int pair[2];
    if (ram_ == MAP_FAILED || ::socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ == 0) serve(pair[1]);
    ::close(pair[1]);
    socket_ = pair[0];
  }
  ~Guest() {
    ::kill(pid_, SIGKILL);
    ::close(socket_);
    ::munmap(ram_, kRamPages * kPageSize);
  }

  void write(std::uint64_t pages) {
    if (::write(socket_, &pages, sizeof pages) != sizeof pages ||
        ::read(socket_, &pages, sizeof pages) != sizeof pages) {
      std::abort();
    }
  }

  pid_t pid() const { return pid_; }
  RamBlock block() const { return {"ram", reinterpret_cast<std::uint64_t>(ram_), kRamPages * kPageSize}; }

 private:
  [[noreturn]] void serve(int socket) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (std::uint64_t i = 0; i < kRamPages; ++i) ram_[i * kPageSize] = std::byte{1};
    std::mt19937_64 random(1);
    for (std::uint64_t pages; ::read(socket, &pages, sizeof pages) == sizeof pages;) {
      for (std::uint64_t i = 0; i < pages; ++i) {
        volatile std::byte& byte = ram_[random() % kRamPages * kPageSize];
        byte = static_cast<std::byte>(random());
      }
      if (::write(socket, &pages, sizeof pages) < 0) break;
    }
    ::_exit(0);
  }

  std::byte* ram_;
  pid_t pid_;
  int socket_;
};

void collect(benchmark::State& state, Guest& guest, DirtyTracker& tracker) {
  WorkerPool pool(static_cast<unsigned>(state.range(1)));
  std::vector<DirtyBitmap> dirty(1, DirtyBitmap(kRamPages));
  guest.write(0);
  tracker.protect_all();
  tracker.collect(dirty, pool);
  for (auto _ : state) {
    state.PauseTiming();
    guest.write(static_cast<std::uint64_t>(state.range(0)));
    dirty[0].clear();
    state.ResumeTiming();
    tracker.collect(dirty, pool);
  }
  state.counters["dirty"] = static_cast<double>(dirty[0].count());
}

void BM_Userfaultfd(benchmark::State& state) {
  Guest guest;
  const GuestMemory memory(guest.pid(), {guest.block()});
  collect(state, guest, *make_userfaultfd_tracker(memory));
}
BENCHMARK(BM_Userfaultfd)->Args({0, 1})->Args({3'000, 1})->Args({3'000, 2})->Args({50'000, 1})->UseRealTime();

void BM_Compare(benchmark::State& state) {
  Guest guest;
  const GuestMemory memory(guest.pid(), {guest.block()});
  Shadow shadow(memory);
  guest.write(0);
  memory.read(0, 0, {shadow.page(0, 0), kRamPages * kPageSize});
  collect(state, guest, *make_compare_tracker(memory, shadow));
}
BENCHMARK(BM_Compare)->Args({3'000, 1})->Args({3'000, 2})->UseRealTime();

void BM_PlainRead(benchmark::State& state) {
  Guest guest;
  guest.write(0);
  const GuestMemory memory(guest.pid(), {guest.block()});
  const auto* const words = reinterpret_cast<const std::uint64_t*>(memory.mapped(0));
  for (auto _ : state)
    benchmark::DoNotOptimize(std::accumulate(words, words + kRamPages * kPageSize / 8, std::uint64_t{0}));
}
BENCHMARK(BM_PlainRead)->UseRealTime();

void BM_BitmapRuns(benchmark::State& state) {
  DirtyBitmap bitmap(kRamPages);
  std::mt19937_64 random(1);
  for (int i = 0; i < 3'000; ++i) bitmap.set(random() % kRamPages, 1);
  std::vector<PageRun> runs;
  for (auto _ : state) {
    runs.clear();
    bitmap.append_runs(runs);
  }
}
BENCHMARK(BM_BitmapRuns);

void BM_BitmapCount(benchmark::State& state) {
  const DirtyBitmap bitmap(kRamPages);
  for (auto _ : state) benchmark::DoNotOptimize(bitmap.count());
}
BENCHMARK(BM_BitmapCount);

void BM_BitmapMerge(benchmark::State& state) {
  DirtyBitmap ours(kRamPages), theirs(kRamPages);
  for (auto _ : state) ours.merge(theirs);
}
BENCHMARK(BM_BitmapMerge);

}  // namespace
}  // namespace colo
