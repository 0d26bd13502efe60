#include "disk_copy.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <utility>

#include "error.h"

namespace colo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::uint64_t kWindowBlocksMax = 256;  // 16 MiB
constexpr std::uint64_t kWindowBlocksMin = 16;
constexpr auto kProgressPeriod = std::chrono::milliseconds(250);
static_assert(kWindowBlocksMax <= kDiskHashesMax);

// While a window's cost is slept off, the logs fill: a tenth of a second at the most.
std::uint64_t window_blocks_for(std::uint64_t bytes_per_second) {
  if (bytes_per_second == 0) return kWindowBlocksMax;
  return std::clamp(bytes_per_second / 10 / kDiskBlockBytes, kWindowBlocksMin, kWindowBlocksMax);
}

bool all_zero(std::span<const std::byte> bytes) {
  return bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

}  // namespace

void add_disk_writes(StreamWriter& stream, std::uint16_t disk, const DiskWrites& writes) {
  for (const DiskWrite& write : writes.entries()) stream.add_disk_write(disk, write);
}

void send_first_copy_writes(StreamWriter& stream, std::span<const std::shared_ptr<DiskExport>> disks) {
  for (std::size_t disk = 0; disk < disks.size(); ++disk) {
    const auto writes = disks[disk]->log().take_first_copy_writes();
    if (writes->entries().empty()) continue;
    add_disk_writes(stream, static_cast<std::uint16_t>(disk), *writes);
    stream.send_gathered();
  }
}

DiskCopy::DiskCopy(std::span<const std::shared_ptr<DiskExport>> disks, StreamWriter& stream,
                   LinkSockets& sockets, std::uint64_t bytes_per_second)
    : disks_(disks),
      stream_(stream),
      sockets_(sockets),
      pace_(bytes_per_second),
      window_blocks_(window_blocks_for(bytes_per_second)),
      buffer_(std::make_unique_for_overwrite<std::byte[]>(window_blocks_ * kDiskBlockBytes)) {
  for (const auto& disk : disks) sources_.push_back(disk->source());
}

void DiskCopy::cut() {
  const std::lock_guard lock(mutex_);
  cut_ = true;
  if (reading_ != nullptr) reading_->cut();
}

void DiskCopy::run(const std::function<void(SyncProgress)>& progress) {
  SyncProgress now;
  for (const auto& disk : disks_) now.total_bytes += disk->log().stats().differing_blocks * kDiskBlockBytes;
  const std::uint64_t wire_before = stream_.wire_bytes();
  Clock::time_point reported;
  for (std::size_t i = 0; i < disks_.size(); ++i) {
    const auto disk = static_cast<std::uint16_t>(i);
    for (;;) {
      const std::uint64_t sent_before = stream_.wire_bytes();
      const std::uint64_t taken = take_window(disks_[i]->log());
      const std::uint64_t logged_before = stream_.wire_bytes();
      send_first_copy_writes(stream_, disks_);
      if (taken == 0) break;
      const std::uint64_t logged_bytes = stream_.wire_bytes() - logged_before;
      read_window(i);
      hash_window();
      ask(disk);
      send_window(disk);
      now.done_bytes += taken * kDiskBlockBytes;
      now.wire_bytes = stream_.wire_bytes() - wire_before;
      if (Clock::now() - reported > kProgressPeriod) {
        progress(now);
        reported = Clock::now();
      }
      sockets_.sleep_until(pace_.after(stream_.wire_bytes() - sent_before - logged_bytes));
    }
  }
  now.wire_bytes = stream_.wire_bytes() - wire_before;
  progress(now);
}

// Step 1.
std::uint64_t DiskCopy::take_window(DiskLog& log) {
  runs_.clear();
  blocks_.clear();
  while (blocks_.size() < window_blocks_) {
    const BlockRun run = log.next_differing(window_blocks_ - blocks_.size());
    if (run.count == 0) break;
    runs_.push_back(run);
    for (std::uint64_t i = 0; i < run.count; ++i) {
      const std::uint64_t number = run.first + i;
      const std::uint64_t length = std::min(kDiskBlockBytes, log.size_bytes() - number * kDiskBlockBytes);
      // Only the disk's last block is shorter, and it comes last: so every block has a place of full size.
      blocks_.push_back({number, {buffer_.get() + blocks_.size() * kDiskBlockBytes, length}});
    }
  }
  return blocks_.size();
}

// Step 3.
void DiskCopy::read_window(std::size_t disk) {
  std::vector<NbdRead> reads;
  std::size_t at = 0;
  for (const BlockRun& run : runs_) {
    const Block &first = blocks_[at], &last = blocks_[at + run.count - 1];
    const auto end = last.bytes.data() + last.bytes.size();
    reads.push_back({run.first * kDiskBlockBytes, {first.bytes.data(), end}});
    at += run.count;
  }
  NbdClient& source = *sources_[disk];
  {
    const std::lock_guard lock(mutex_);
    if (cut_) throw Error("ERR_COLO_LINK", 0, "the bulk connections were cut");
    reading_ = &source;
  }
  const auto end_reading = [this] {
    const std::lock_guard lock(mutex_);
    reading_ = nullptr;
    return cut_;
  };
  try {
    source.read(reads, [this](std::uint64_t, std::span<std::byte> hole) { note_hole(hole); });
  } catch (const Error&) {
    if (end_reading()) throw Error("ERR_COLO_LINK", 0, "the bulk connections were cut");
    throw;
  }
  end_reading();
}

void DiskCopy::note_hole(std::span<std::byte> hole) {
  while (!hole.empty()) {
    Block& block = blocks_[static_cast<std::size_t>(hole.data() - buffer_.get()) / kDiskBlockBytes];
    const std::size_t into_block = static_cast<std::size_t>(hole.data() - block.bytes.data());
    const std::size_t here = std::min(hole.size(), block.bytes.size() - into_block);
    if (here == block.bytes.size()) {
      block.zeros = true;
    } else {
      std::memset(hole.data(), 0, here);
    }
    hole = hole.subspan(here);
  }
}

void DiskCopy::hash_window() {
  // No vector: a process that exits would destroy it beside us.
  static constexpr std::array<std::byte, kDiskBlockBytes> zeros{};
  static const BlockHash hash_of_zeros = hash_of_block(zeros);
  hashes_.clear();
  for (Block& block : blocks_) {
    const bool whole = block.bytes.size() == kDiskBlockBytes;
    if (!block.zeros) block.zeros = all_zero(block.bytes);
    if (block.zeros) {
      hashes_.push_back(whole ? hash_of_zeros : hash_of_block({zeros.data(), block.bytes.size()}));
    } else {
      hashes_.push_back(hash_of_block(block.bytes));
    }
  }
}

// Step 4, as far as the answers; a question for each run, the answers after all of them.
void DiskCopy::ask(std::uint16_t disk) {
  std::size_t at = 0;
  for (const BlockRun& run : runs_) {
    stream_.send_disk_hashes(disk, run.first, {hashes_.data() + at, run.count});
    at += run.count;
  }
  at = 0;
  for (const BlockRun& run : runs_) {
    differs_.resize(differs_bytes(static_cast<std::uint32_t>(run.count)));
    stream_.receive_disk_differs(static_cast<std::uint32_t>(run.count), differs_);
    for (std::uint64_t i = 0; i < run.count; ++i)
      blocks_[at++].differs = (differs_[i / 8] >> i % 8 & std::byte{1}) != std::byte{0};
  }
}

// The rest of step 4; blocks that follow one another go together.
void DiskCopy::send_window(std::uint16_t disk) {
  for (std::size_t at = 0; at < blocks_.size();) {
    const Block& first = blocks_[at];
    DiskWrite write = {first.number * kDiskBlockBytes, 0, first.zeros ? nullptr : first.bytes.data()};
    std::size_t count = 0;
    for (; at + count < blocks_.size(); ++count) {
      const Block& next = blocks_[at + count];
      if (next.number != first.number + count || next.zeros != first.zeros || !next.differs ||
          write.length + next.bytes.size() > kDiskEntryBytesMax)
        break;
      write.length += next.bytes.size();
    }
    if (count > 0) stream_.add_disk_write(disk, write);
    at += std::max<std::size_t>(count, 1);
  }
  stream_.send_gathered();
}

}  // namespace colo
