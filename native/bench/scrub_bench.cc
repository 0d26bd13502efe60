// The scrub's parts on a slice of 8 MiB, of a mapped and of a remote block: hashing beside the guest (the
// time is the thread's processor time), the standby's look at its own pages, and what remains in the pause:
// taking the hashes while the next pages are being hashed.
#include <benchmark/benchmark.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "../core/scrub_stream.h"
#include "../core/scrubber.h"

namespace colo {
namespace {

constexpr std::uint64_t kSlicePages = 2048, kRamPages = 65'536;  // 8 and 256 MiB

// A child that holds RAM full of bytes; argument 0: shared, and so mapped here; 1: private, and so remote.
class Guest {
 public:
  explicit Guest(bool remote) {
    const int kind = remote ? MAP_PRIVATE : MAP_SHARED;
    ram_ = ::mmap(nullptr, kRamPages * kPageSize, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);
    if (ram_ == MAP_FAILED) std::abort();
    std::memset(ram_, 77, kRamPages * kPageSize);
    pid_ = ::fork();
    if (pid_ != 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (;;) ::pause();
  }
  ~Guest() {
    ::kill(pid_, SIGKILL);
    ::munmap(ram_, kRamPages * kPageSize);
  }

  GuestMemory memory() const {
    return GuestMemory(pid_, {{"ram", reinterpret_cast<std::uint64_t>(ram_), kRamPages * kPageSize}});
  }

 private:
  void* ram_;
  pid_t pid_;
};

ScrubSlice hash_slice(Scrubber& scrubber) {
  for (std::uint64_t wait_us = 5000;; wait_us *= 2) {
    scrubber.begin();
    std::this_thread::sleep_for(std::chrono::microseconds(wait_us));
    ScrubSlice slice = scrubber.take();
    if (slice.hashes.size() == kSlicePages) return slice;
  }
}

void BM_ScrubHash(benchmark::State& state) {
  const Guest guest(state.range(0) != 0);
  const GuestMemory memory = guest.memory();
  Scrubber scrubber(memory, nullptr, kSlicePages);
  for (auto _ : state) {
    const ScrubSlice slice = hash_slice(scrubber);
    state.SetIterationTime(static_cast<double>(slice.cpu_ns) / 1e9);
    scrubber.sent(slice);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kSlicePages * kPageSize));
}
BENCHMARK(BM_ScrubHash)->Arg(0)->Arg(1)->UseManualTime()->Unit(benchmark::kMicrosecond)->Iterations(100);

void BM_ScrubCheck(benchmark::State& state) {
  const Guest guest(state.range(0) != 0);
  const GuestMemory memory = guest.memory();
  Scrubber scrubber(memory, nullptr, kSlicePages);
  const std::vector<DirtyBitmap> dirty(1, DirtyBitmap(kRamPages));
  const ScrubFrames frames = scrubber.frames_of(hash_slice(scrubber), dirty);
  for (auto _ : state) benchmark::DoNotOptimize(check_scrub(memory, frames.payloads.at(0)));
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kSlicePages * kPageSize));
}
BENCHMARK(BM_ScrubCheck)->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond);

void BM_ScrubTakeInThePause(benchmark::State& state) {
  const Guest guest(state.range(0) != 0);
  const GuestMemory memory = guest.memory();
  Scrubber scrubber(memory, nullptr, kRamPages);
  for (auto _ : state) {
    state.PauseTiming();
    scrubber.begin();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    state.ResumeTiming();
    ScrubSlice slice = scrubber.take();
    benchmark::DoNotOptimize(slice.hashes.data());
    state.PauseTiming();
    slice = {};
    state.ResumeTiming();
  }
}
BENCHMARK(BM_ScrubTakeInThePause)->Arg(0)->Arg(1)->Unit(benchmark::kMicrosecond)->Iterations(300);

}  // namespace
}  // namespace colo
