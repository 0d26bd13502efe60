#include "bulk_sender.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <future>
#include <mutex>
#include <utility>

#include "checkpoint_stream.h"
#include "error.h"
#include "laps.h"
#include "pace.h"
#include "page_delta.h"
#include "socket_io.h"

namespace colo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kConnectTimeoutMs = 5000;
constexpr std::uint64_t kSlicePages = 256;  // 1 MiB is read at once in the first copy
constexpr auto kProgressPeriod = std::chrono::milliseconds(250);

struct Slice {
  std::uint16_t block;
  std::uint16_t pages;
  std::uint64_t first;
};

std::vector<Slice> slices_of(const GuestMemory& memory) {
  std::vector<Slice> slices;
  for (std::size_t block = 0; block < memory.block_count(); ++block) {
    const std::uint64_t pages = memory.block(block).pages();
    for (std::uint64_t first = 0; first < pages; first += kSlicePages) {
      const auto count = static_cast<std::uint16_t>(std::min(kSlicePages, pages - first));
      slices.push_back({static_cast<std::uint16_t>(block), count, first});
    }
  }
  return slices;
}

std::uint64_t elapsed_us(Clock::time_point begin) {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begin).count());
}

}  // namespace

struct BulkSender::Lane {
  Lane(unsigned number, const Connection& connection, std::uint64_t generation)
      : index(number), stream(connection.calls(), connection.fd.get(), generation) {}

  const unsigned index;
  StreamWriter stream;
  PageCounts counts;  // of the epoch
  std::uint64_t encode_us = 0;
  std::unique_ptr<std::byte[]> slice;  // as long as the first copy lasts
};

// The first copy in progress: what all lanes share.
class BulkSender::FirstCopy {
 public:
  FirstCopy(BulkSender& sender, std::span<const std::shared_ptr<DiskExport>> disks,
            std::uint64_t bytes_per_second)
      : sender_(sender), disks_(disks), slices_(slices_of(sender.memory_)), pace_(bytes_per_second) {}

  void run_lane(Lane& lane);
  SyncProgress progress() const { return {done_bytes_, sender_.memory_.total_bytes(), wire_bytes_}; }

 private:
  void send(Lane& lane, const Slice& slice);

  BulkSender& sender_;
  const std::span<const std::shared_ptr<DiskExport>> disks_;
  const std::vector<Slice> slices_;
  Pace pace_;
  std::atomic<std::size_t> next_ = 0;
  std::atomic<std::uint64_t> done_bytes_ = 0, wire_bytes_ = 0;
};

void BulkSender::FirstCopy::run_lane(Lane& lane) {
  lane.counts = {};
  lane.slice = std::make_unique_for_overwrite<std::byte[]>(kSlicePages * kPageSize);
  std::uint64_t counted = lane.stream.wire_bytes();
  const auto count = [&] {
    const std::uint64_t before = std::exchange(counted, lane.stream.wire_bytes());
    wire_bytes_ += counted - before;
    return counted - before;
  };
  for (std::size_t next = next_++; next < slices_.size(); next = next_++) {
    if (lane.index == 0) send_first_copy_writes(lane.stream, disks_);
    count();
    send(lane, slices_[next]);
    sender_.sockets_.sleep_until(pace_.after(count()));
    done_bytes_ += slices_[next].pages * kPageSize;
  }
  lane.stream.end_epoch(lane.counts.on_wire());
  count();
  lane.slice.reset();
}

void BulkSender::FirstCopy::send(Lane& lane, const Slice& slice) {
  // One read serves both: what goes into the shadow is what goes on the wire, whatever the guest writes
  // meanwhile (invariant 3).
  const std::span bytes(lane.slice.get(), slice.pages * kPageSize);
  sender_.memory_.read(slice.block, slice.first * kPageSize, bytes);
  const PageKernel& kernel = best_page_kernel();
  for (std::uint64_t i = 0; i < slice.pages; ++i) {
    const std::uint64_t page = slice.first + i;
    std::byte* const base = sender_.shadow_ == nullptr ? nullptr : sender_.shadow_->page(slice.block, page);
    encode_first_copy(lane.stream.entries(), kernel, slice.block, page, bytes.data() + i * kPageSize, base,
                      lane.counts);
  }
  // The slice is about to be used again. Zero pages refer to nothing: long runs of them gather into one
  // entry.
  if (lane.stream.entries().refers_to_pages()) lane.stream.send_gathered();
}

BulkSender::BulkSender(const GuestMemory& memory, Shadow* shadow, Target target)
    : memory_(memory), shadow_(shadow), target_(std::move(target)), pool_(target_.connections) {
  COLO_ASSERT(target_.token.size() == kTokenBytes);
  COLO_ASSERT(target_.connections >= 1 && target_.connections <= kConnectionsMax);
  COLO_ASSERT(memory.block_count() <= UINT16_MAX);
}

BulkSender::~BulkSender() = default;

void BulkSender::connect() {
  COLO_ASSERT(lanes_.empty());
  for (unsigned index = 0; index < target_.connections; ++index) {
    const Connection& connection =
        sockets_.connect(target_.host, target_.port, kConnectTimeoutMs, target_.credentials.get());
    auto preface = encode_preface({target_.token, target_.generation, static_cast<std::uint16_t>(index),
                                   static_cast<std::uint16_t>(target_.connections)});
    iovec piece = {preface.data(), preface.size()};
    send_all(connection.calls(), connection.fd.get(), {&piece, 1});
    lanes_.push_back(std::make_unique<Lane>(index, connection, target_.generation));
  }
}

void BulkSender::run_lanes(const std::function<void(Lane&)>& job) {
  if (lanes_.size() != target_.connections)
    throw Error("ERR_COLO_LINK", 0, "the bulk connections are not open");
  std::mutex mutex;
  std::exception_ptr first;  // the reason; what the other lanes meet after the cut is its consequence
  pool_.run(static_cast<unsigned>(lanes_.size()), [&](unsigned part) {
    try {
      job(*lanes_[part]);
    } catch (...) {
      {
        const std::lock_guard lock(mutex);
        if (!first) first = std::current_exception();
      }
      cut();
    }
  });
  if (first) std::rethrow_exception(first);
}

void BulkSender::begin_first_copy() {
  if (std::exchange(first_copy_begun_, true)) return;
  for (const auto& lane : lanes_) lane->stream.begin_epoch(0);
}

void BulkSender::send_disks(std::span<const std::shared_ptr<DiskExport>> disks,
                            std::uint64_t bytes_per_second,
                            const std::function<void(SyncProgress)>& progress) {
  if (lanes_.empty()) throw Error("ERR_COLO_LINK", 0, "the bulk connections are not open");
  begin_first_copy();
  DiskCopy copy(disks, lanes_[0]->stream, sockets_, bytes_per_second);
  const auto publish = [this](DiskCopy* in_progress) {
    const std::lock_guard lock(disk_copy_mutex_);
    disk_copy_ = in_progress;
  };
  publish(&copy);
  try {
    if (cut_) copy.cut();  // it may have come before
    copy.run(progress);
  } catch (...) {
    publish(nullptr);
    cut();
    throw;
  }
  publish(nullptr);
}

void BulkSender::send_first_copy(std::span<const std::shared_ptr<DiskExport>> disks,
                                 std::uint64_t bytes_per_second,
                                 const std::function<void(SyncProgress)>& progress) {
  begin_first_copy();
  first_copy_begun_ = false;  // its END is part of this job
  FirstCopy copy(*this, disks, bytes_per_second);
  auto lanes =
      std::async(std::launch::async, [&] { run_lanes([&copy](Lane& lane) { copy.run_lane(lane); }); });
  while (lanes.wait_for(kProgressPeriod) != std::future_status::ready) progress(copy.progress());
  lanes.get();
  progress(copy.progress());
}

TransmitResult BulkSender::send_epoch(std::uint64_t epoch, std::span<const CapturedRun> runs,
                                      std::span<const std::byte> vmstate,
                                      std::span<const std::vector<std::byte>> scrub,
                                      std::span<const std::shared_ptr<const DiskWrites>> disks) {
  Laps laps;
  std::uint64_t pages = 0;
  for (const CapturedRun& run : runs) pages += run.count;
  run_lanes([&](Lane& lane) {
    const auto lane_begin = Clock::now();
    lane.counts = {};
    lane.stream.begin_epoch(epoch);
    if (lane.index == 0) {
      lane.stream.send_vmstate(vmstate);
      for (const std::vector<std::byte>& payload : scrub) lane.stream.send_scrub(payload);
      for (std::size_t disk = 0; disk < disks.size(); ++disk)
        add_disk_writes(lane.stream, static_cast<std::uint16_t>(disk), *disks[disk]);
    }
    encode_share(lane, runs, pages * lane.index / lanes_.size(), pages * (lane.index + 1) / lanes_.size());
    lane.stream.end_epoch(lane.counts.on_wire());
    lane.encode_us = elapsed_us(lane_begin) - lane.stream.send_ns() / 1000;
  });
  TransmitResult result;
  PageCounts counts;
  for (const auto& lane : lanes_) {
    counts += lane->counts;
    result.wire_bytes += lane->stream.wire_bytes();
    result.encode_us = std::max(result.encode_us, lane->encode_us);
  }
  COLO_ASSERT(counts.on_wire() + counts.unchanged ==
              pages);  // INVARIANT 3: every captured page was looked at
  result.raw_bytes = pages * kPageSize;
  result.zero_pages = counts.zero;
  result.unchanged_pages = counts.unchanged;
  result.delta_pages = counts.delta;
  result.raw_pages = counts.raw;
  result.began_us = laps.began_us();
  result.total_us = laps.lap_us();
  return result;
}

// Pages [begin, end) of all that was captured, counted in the order of `runs`.
void BulkSender::encode_share(Lane& lane, std::span<const CapturedRun> runs, std::uint64_t begin,
                              std::uint64_t end) {
  const PageKernel& kernel = best_page_kernel();
  std::uint64_t run_begin = 0;
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const CapturedRun& run = runs[i];
    const std::uint64_t run_end = run_begin + run.count;
    for (std::uint64_t at = std::max(begin, run_begin); at < std::min(end, run_end); ++at) {
      const std::uint64_t offset = at - run_begin, page = run.first + offset;
      std::byte* base = nullptr;
      if (shadow_ != nullptr) {
        base = shadow_->page(run.block, page);
        if (at + 1 < run_end) {
          prefetch_page(base + kPageSize);
        } else if (i + 1 < runs.size()) {
          prefetch_page(shadow_->page(runs[i + 1].block, runs[i + 1].first));
        }
      }
      encode_page(lane.stream.entries(), kernel, static_cast<std::uint16_t>(run.block), page,
                  run.data + offset * kPageSize, base, lane.counts);
    }
    run_begin = run_end;
  }
}

void BulkSender::cut() {
  cut_ = true;
  sockets_.cut();
  const std::lock_guard lock(disk_copy_mutex_);
  if (disk_copy_ != nullptr) disk_copy_->cut();
}

}  // namespace colo
