// What lies between the two sockets of a gate's port: frames in QEMU's socket format, byte for byte, in a
// queue of chunks.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

namespace colo {

// A frame is be32 length, be32 vnet header length, then `length` bytes, the vnet header among them (QEMU:
// filter_send() in net/filter-mirror.c). Its receiver takes no more than NET_BUFSIZE (QEMU: net_fill_rstate()
// in net/net.c): a longer frame could never go back.
inline constexpr std::size_t kGuestFrameHeaderBytes = 8;
inline constexpr std::uint32_t kFrameBytesMax = 4096 + 65536;

// Finds frame ends in a stream that comes in pieces of any size.
class FrameScanner {
 public:
  // Goes over `bytes` and adds the frames that end in them to frames(). False: a header that QEMU can't have
  // written; the scanner is of no more use then.
  bool feed(std::span<const std::byte> bytes);

  std::uint64_t frames() const { return frames_; }
  // Bytes fed of a frame whose end has not come; 0 between frames.
  std::size_t into_frame() const { return into_frame_; }
  // Bytes missing to the next boundary that is known: the end of the header or of the frame; never 0.
  std::size_t missing() const {
    return (into_frame_ < kGuestFrameHeaderBytes ? kGuestFrameHeaderBytes : frame_bytes_) - into_frame_;
  }

 private:
  std::uint64_t frames_ = 0;
  std::size_t into_frame_ = 0;
  std::size_t frame_bytes_ = 0;  // header included; valid once the header is whole
  std::byte header_[kGuestFrameHeaderBytes];
};

using Chunk = std::unique_ptr<std::byte[]>;
inline constexpr std::size_t kChunkBytes = 64 * 1024;

// Spare chunks, allocated and touched in advance so that an ordinary epoch's frames cost no page fault. Gives
// memory beyond that back.
class ChunkPool {
 public:
  explicit ChunkPool(std::size_t spare_chunks);
  Chunk take();
  void give(Chunk chunk);

 private:
  std::size_t spare_chunks_;
  std::vector<Chunk> spare_;
};

// First in, first out, and the newest bytes can be taken back. Not thread-safe.
class FrameBuffer {
 public:
  explicit FrameBuffer(ChunkPool& pool) : pool_(pool) {}

  std::size_t size() const { return size_; }

  // Room at the end, never empty; append() says how much of it has been filled.
  std::span<std::byte> room();
  void append(std::size_t bytes);
  // Forgets the newest `bytes`.
  void truncate(std::size_t bytes);

  // Points `out` at the oldest bytes, `bytes_max` of them at most, and returns how many entries it took.
  std::size_t gather(std::size_t bytes_max, std::span<iovec> out) const;
  // Forgets the oldest `bytes`.
  void consume(std::size_t bytes);

 private:
  ChunkPool& pool_;
  std::deque<Chunk> chunks_;
  std::size_t begin_ = 0;  // of the oldest byte in the first chunk
  std::size_t size_ = 0;
};

}  // namespace colo
