#include "dirty_rate_probe.h"

#include <chrono>
#include <mutex>
#include <optional>
#include <utility>

#include "capture.h"
#include "dirty_tracker.h"
#include "job_thread.h"
#include "laps.h"
#include "page_sample.h"
#include "worker_pool.h"

namespace colo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kPayloadBytes = 1u << 20, kPayloadPieces = 512;
constexpr std::uint64_t kStagingResidentBytes = 4u << 20;

std::vector<DirtyBitmap> clean_bitmaps(const GuestMemory& memory) {
  std::vector<DirtyBitmap> bitmaps;
  for (std::size_t block = 0; block < memory.block_count(); ++block)
    bitmaps.emplace_back(memory.block(block).pages());
  return bitmaps;
}

// Room for every sampled page at once: one of each group, and the last of a block may be short.
std::uint64_t sample_bytes(const GuestMemory& memory, std::uint64_t one_in) {
  std::uint64_t pages = 0;
  for (std::size_t block = 0; block < memory.block_count(); ++block)
    pages += (memory.block(block).pages() + one_in - 1) / one_in;
  return pages * kPageSize;
}

}  // namespace

// All of it belongs to the job in progress.
struct DirtyRateProbe::State {
  explicit State(const DirtyRateOptions& options)
      : memory(options.pid, options.blocks),
        sample(memory, options.sample_one_in),
        staging(sample_bytes(memory, options.sample_one_in), kStagingResidentBytes),
        dirty(clean_bitmaps(memory)),
        sampled(clean_bitmaps(memory)),
        tracker(make_userfaultfd_tracker(memory)),
        pool(std::in_place, options.threads) {}

  void begin();
  DirtyRateRound look();
  void encode_sampled(DirtyRateRound& round);

  const GuestMemory memory;
  PageSample sample;
  Staging staging;
  std::vector<DirtyBitmap> dirty, sampled;
  std::vector<CapturedRun> captured;
  EntryWriter entries{kPayloadBytes, kPayloadPieces};
  WorkerPool alone{1};
  std::unique_ptr<DirtyTracker> tracker;
  std::optional<WorkerPool> pool;
  std::optional<Clock::time_point> window_began;

  std::once_flag ended;
  JobThread jobs{"the probe"};
};

void DirtyRateProbe::State::begin() {
  const std::vector<DirtyBitmap> present = present_pages(memory);
  // Not INVARIANT 5: see look().
  tracker->protect_all();
  window_began = Clock::now();
  sample.read_bases(present);
}

DirtyRateRound DirtyRateProbe::State::look() {
  DirtyRateRound round;
  Laps laps;
  const auto now = Clock::now();
  const auto window = now - *std::exchange(window_began, now);
  round.window_us =
      static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(window).count());
  // Pages are protected again here while the guest RUNS, which INVARIANT 5 forbids wherever data depends on
  // it: a page that is pinned for I/O may be written later without being reported. Here nothing does. What is
  // collected is counted and thrown away; no byte of it is sent, nor called a checkpoint. A protection can't
  // come here: PrimaryEngine has a tracker of its own and no way to this one, and the kernel grants only one
  // of them.
  tracker->collect(dirty, *pool);
  round.scan_us = laps.lap_us();
  for (DirtyBitmap& block : sampled) block.clear();
  sample.add_sampled(dirty, sampled);
  for (DirtyBitmap& block : dirty) {
    round.dirty_pages += block.count();
    block.clear();
  }
  encode_sampled(round);
  return round;
}

void DirtyRateProbe::State::encode_sampled(DirtyRateRound& round) {
  captured.clear();
  Laps laps;
  round.sampled_pages = capture_pages(memory, sampled, staging, alone, captured);
  round.copy_us = laps.lap_us();
  const PageKernel& kernel = best_page_kernel();
  for (const CapturedRun& run : captured) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      if (!entries.has_room()) {
        round.sampled_bytes += entries.payload_bytes();
        entries.clear();
      }
      encode_page(entries, kernel, static_cast<std::uint16_t>(run.block), run.first + i,
                  run.data + i * kPageSize, sample.base(run.block, run.first + i), round.sampled);
    }
  }
  round.sampled_bytes += entries.payload_bytes();
  entries.clear();
  round.encode_us = laps.lap_us();
}

DirtyRateProbe::DirtyRateProbe(const DirtyRateOptions& options) : state_(std::make_unique<State>(options)) {}

DirtyRateProbe::~DirtyRateProbe() { close(); }

void DirtyRateProbe::begin(Done done) {
  state_->jobs.start([state = state_.get()] { state->begin(); }, std::move(done));
}

void DirtyRateProbe::watch(std::uint64_t interval_us, RoundDone done) {
  const auto round = std::make_shared<DirtyRateRound>();
  state_->jobs.start(
      [state = state_.get(), interval_us, round] {
        if (!state->window_began) throw Error("ERR_COLO_ARGUMENT", 0, "watching begins with begin()");
        state->jobs.wait_until(*state->window_began + std::chrono::microseconds(interval_us));
        *round = state->look();
      },
      [round, done = std::move(done)](const Error* error) { done(error, *round); });
}

void DirtyRateProbe::close() {
  state_->jobs.close();
  std::call_once(state_->ended, [this] {
    state_->jobs.join();
    state_->tracker.reset();  // lifts the protection
    state_->pool.reset();
  });
}

}  // namespace colo
