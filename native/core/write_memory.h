// Where the guest's disk writes lie from their arrival until they have been sent.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace colo {

// The longest write that the export takes.
inline constexpr std::uint64_t kWriteBytesMax = 1u << 20;
// What a write costs beside its data: its entry, and the range that is remembered until it is confirmed.
inline constexpr std::uint64_t kWriteOverheadBytes = 64;

class WriteMemory;

// A part of what a WriteMemory holds; given back when it goes.
class WriteCharge {
 public:
  WriteCharge() = default;
  WriteCharge(WriteMemory& memory, std::uint64_t bytes) : memory_(&memory), bytes_(bytes) {}
  WriteCharge(WriteCharge&& other) noexcept;
  WriteCharge& operator=(WriteCharge&& other) noexcept;
  ~WriteCharge();

  void join(WriteCharge other);

 private:
  WriteMemory* memory_ = nullptr;
  std::uint64_t bytes_ = 0;
};

using WriteChunk = std::shared_ptr<std::byte[]>;

// Room for the data of one write: one piece, or two where a chunk ends; none for a write without data.
struct WriteRoom {
  struct Piece {
    std::span<std::byte> bytes;
    WriteChunk chunk;  // keeps `bytes` valid
  };
  std::array<Piece, 2> pieces;
  std::uint64_t length = 0;
  WriteCharge charge;
};

// Chunks, filled one after the other and used again once nothing refers to them: in the steady state a write
// allocates nothing, and its data is sent from where it was received. Must outlive all that it hands out.
//
// Thread rules: every function may be called from any thread.
class WriteMemory {
 public:
  WriteMemory(std::uint64_t limit_bytes, unsigned stall_ms);

  // Room for `length` bytes, at most kWriteBytesMax (asserted). Beyond `limit_bytes` it waits for room, for
  // at most `stall_ms` and while waiting is on; then it takes more.
  WriteRoom take(std::uint64_t length);
  // Whether take() would wait now.
  bool must_wait(std::uint64_t length) const;
  // Off at first. Turning it off ends every wait.
  void set_waiting(bool on);

  std::uint64_t held_bytes() const { return held_bytes_; }

 private:
  friend class WriteCharge;
  void give_back(std::uint64_t bytes);
  WriteRoom::Piece take_piece(std::uint64_t length_max);
  WriteChunk take_chunk();
  void keep_spare(std::unique_ptr<std::byte[]> chunk);

  const std::uint64_t limit_bytes_;
  const unsigned stall_ms_;
  std::atomic<std::uint64_t> held_bytes_ = 0;  // changed under `mutex_`
  std::atomic<bool> waiting_ = false;          // changed under `mutex_`
  std::mutex mutex_;
  std::condition_variable changed_;

  std::mutex spare_mutex_;
  std::vector<std::unique_ptr<std::byte[]>> spare_;
  // After `spare_`, to which it is given back.
  std::mutex chunk_mutex_;
  WriteChunk chunk_;  // the one that is being filled
  std::uint64_t chunk_used_ = 0;
};

}  // namespace colo
