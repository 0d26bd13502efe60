#include "frame_buffer.h"

#include <endian.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "error.h"

namespace colo {
namespace {

std::uint32_t load_be32(const std::byte* bytes) {
  std::uint32_t value;
  std::memcpy(&value, bytes, sizeof value);
  return be32toh(value);
}

}  // namespace

bool FrameScanner::feed(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::size_t piece = std::min(bytes.size(), missing());
    if (into_frame_ < kGuestFrameHeaderBytes) {
      std::memcpy(header_ + into_frame_, bytes.data(), piece);
      into_frame_ += piece;
      if (into_frame_ == kGuestFrameHeaderBytes) {
        const std::uint32_t length = load_be32(header_);
        if (length > kFrameBytesMax || load_be32(header_ + 4) > length) return false;
        frame_bytes_ = kGuestFrameHeaderBytes + length;
      }
    } else {
      into_frame_ += piece;
    }
    if (into_frame_ >= kGuestFrameHeaderBytes && into_frame_ == frame_bytes_) {
      into_frame_ = 0;
      ++frames_;
    }
    bytes = bytes.subspan(piece);
  }
  return true;
}

ChunkPool::ChunkPool(std::size_t spare_chunks) : spare_chunks_(spare_chunks) {
  spare_.reserve(spare_chunks);
  while (spare_.size() < spare_chunks) spare_.push_back(std::make_unique<std::byte[]>(kChunkBytes));
}

Chunk ChunkPool::take() {
  if (spare_.empty()) return std::make_unique_for_overwrite<std::byte[]>(kChunkBytes);
  Chunk chunk = std::move(spare_.back());
  spare_.pop_back();
  return chunk;
}

void ChunkPool::give(Chunk chunk) {
  if (spare_.size() < spare_chunks_) spare_.push_back(std::move(chunk));
}

std::span<std::byte> FrameBuffer::room() {
  const std::size_t end = begin_ + size_;
  if (end == chunks_.size() * kChunkBytes) chunks_.push_back(pool_.take());
  const std::size_t used = end % kChunkBytes;
  return {chunks_[end / kChunkBytes].get() + used, kChunkBytes - used};
}

void FrameBuffer::append(std::size_t bytes) {
  size_ += bytes;
  COLO_ASSERT(begin_ + size_ <= chunks_.size() * kChunkBytes);
}

void FrameBuffer::truncate(std::size_t bytes) {
  COLO_ASSERT(bytes <= size_);
  size_ -= bytes;
  const std::size_t needed = (begin_ + size_ + kChunkBytes - 1) / kChunkBytes;
  while (chunks_.size() > needed) {
    pool_.give(std::move(chunks_.back()));
    chunks_.pop_back();
  }
}

std::size_t FrameBuffer::gather(std::size_t bytes_max, std::span<iovec> out) const {
  std::size_t left = std::min(bytes_max, size_);
  std::size_t offset = begin_;
  std::size_t entries = 0;
  for (std::size_t i = 0; left > 0 && entries < out.size(); ++i) {
    const std::size_t piece = std::min(left, kChunkBytes - offset);
    out[entries++] = {chunks_[i].get() + offset, piece};
    left -= piece;
    offset = 0;
  }
  return entries;
}

void FrameBuffer::consume(std::size_t bytes) {
  COLO_ASSERT(bytes <= size_);
  begin_ += bytes;
  size_ -= bytes;
  while (begin_ >= kChunkBytes) {
    pool_.give(std::move(chunks_.front()));
    chunks_.pop_front();
    begin_ -= kChunkBytes;
  }
}

}  // namespace colo
