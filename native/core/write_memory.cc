#include "write_memory.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "error.h"

namespace colo {
namespace {

constexpr std::uint64_t kChunkBytes = 2u << 20;
constexpr std::size_t kSpareChunks = 8;  // kept for the next burst; more is given back to the system
// So that no two connections write to one cache line.
constexpr std::uint64_t kAlignmentBytes = 64;
static_assert(kWriteBytesMax <= kChunkBytes, "a write needs at most two pieces");

}  // namespace

WriteCharge::WriteCharge(WriteCharge&& other) noexcept
    : memory_(std::exchange(other.memory_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

WriteCharge& WriteCharge::operator=(WriteCharge&& other) noexcept {
  std::swap(memory_, other.memory_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

WriteCharge::~WriteCharge() {
  if (memory_ != nullptr) memory_->give_back(bytes_);
}

void WriteCharge::join(WriteCharge other) {
  if (memory_ == nullptr) {
    *this = std::move(other);
    return;
  }
  COLO_ASSERT(other.memory_ == nullptr || other.memory_ == memory_);
  bytes_ += std::exchange(other.bytes_, 0);
}

WriteMemory::WriteMemory(std::uint64_t limit_bytes, unsigned stall_ms)
    : limit_bytes_(limit_bytes), stall_ms_(stall_ms) {
  spare_.reserve(kSpareChunks);
}

bool WriteMemory::must_wait(std::uint64_t length) const {
  return waiting_ && held_bytes_ + length + kWriteOverheadBytes > limit_bytes_;
}

void WriteMemory::set_waiting(bool on) {
  {
    const std::lock_guard lock(mutex_);
    waiting_ = on;
  }
  changed_.notify_all();
}

void WriteMemory::give_back(std::uint64_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    COLO_ASSERT(held_bytes_ >= bytes);
    held_bytes_ -= bytes;
  }
  changed_.notify_all();
}

WriteRoom WriteMemory::take(std::uint64_t length) {
  COLO_ASSERT(length <= kWriteBytesMax);
  WriteRoom room;
  {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::milliseconds(stall_ms_), [&] { return !must_wait(length); });
    held_bytes_ += length + kWriteOverheadBytes;
  }
  room.charge = {*this, length + kWriteOverheadBytes};
  room.length = length;
  const std::lock_guard lock(chunk_mutex_);
  for (auto piece = room.pieces.begin(); length > 0; ++piece) {
    *piece = take_piece(length);
    length -= piece->bytes.size();
  }
  return room;
}

WriteRoom::Piece WriteMemory::take_piece(std::uint64_t length_max) {
  if (!chunk_ || chunk_used_ >= kChunkBytes) {
    chunk_ = take_chunk();
    chunk_used_ = 0;
  }
  const std::uint64_t length = std::min(length_max, kChunkBytes - chunk_used_);
  const WriteRoom::Piece piece = {{chunk_.get() + chunk_used_, length}, chunk_};
  chunk_used_ += (length + kAlignmentBytes - 1) / kAlignmentBytes * kAlignmentBytes;
  return piece;
}

WriteChunk WriteMemory::take_chunk() {
  std::unique_ptr<std::byte[]> memory;
  {
    const std::lock_guard lock(spare_mutex_);
    if (!spare_.empty()) {
      memory = std::move(spare_.back());
      spare_.pop_back();
    }
  }
  if (!memory) memory = std::make_unique_for_overwrite<std::byte[]>(kChunkBytes);
  return {memory.release(), [this](std::byte* chunk) { keep_spare(std::unique_ptr<std::byte[]>(chunk)); }};
}

void WriteMemory::keep_spare(std::unique_ptr<std::byte[]> chunk) {
  const std::lock_guard lock(spare_mutex_);
  if (spare_.size() < kSpareChunks) spare_.push_back(std::move(chunk));
}

}  // namespace colo
