#include "ram_cache.h"

#include <string>
#include <utility>

#include "error.h"

namespace colo {
namespace {

// Twice the largest PAGES or DISK frame, so that little is left over at the end of a chunk.
constexpr std::size_t kChunkBytes = 2u << 20;

// What is kept between epochs; an unusual epoch's memory beyond that goes back to the system.
constexpr std::size_t kIdleChunksMax = 32;

}  // namespace

RamCache::RamCache(const GuestMemory& memory, std::uint64_t limit_bytes)
    : limit_bytes_(limit_bytes), applier_(memory) {}

void RamCache::open(std::uint64_t epoch, unsigned lanes) {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(!open_);
  open_ = Epoch{};
  open_->epoch = epoch;
  open_->lanes.resize(lanes);
}

RamCache::Chunk RamCache::take_chunk(std::size_t bytes) {
  if (bytes <= kChunkBytes && !idle_.empty()) {
    Chunk chunk = std::move(idle_.back());
    idle_.pop_back();
    return chunk;
  }
  const std::size_t size = bytes <= kChunkBytes ? kChunkBytes : bytes;
  return {std::make_unique_for_overwrite<std::byte[]>(size), size, 0};
}

std::span<std::byte> RamCache::reserve(unsigned lane, std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(open_ && lane < open_->lanes.size());
  if (bytes > limit_bytes_ - reserved_bytes_) {
    throw Error("ERR_COLO_STAGING_LIMIT", 0,
                "the peer sends more than the " + std::to_string(limit_bytes_) + " bytes that may be staged");
  }
  std::vector<Chunk>& chunks = open_->lanes[lane].chunks;
  if (chunks.empty() || chunks.back().size - chunks.back().used < bytes) chunks.push_back(take_chunk(bytes));
  Chunk& chunk = chunks.back();
  const std::span<std::byte> room(chunk.bytes.get() + chunk.used, bytes);
  chunk.used += bytes;
  open_->reserved_bytes += bytes;
  reserved_bytes_ += bytes;
  return room;
}

void RamCache::add_pages(unsigned lane, std::span<const std::byte> payload) {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(open_ && lane < open_->lanes.size());
  open_->lanes[lane].payloads.push_back(payload);
}

void RamCache::add_disk_writes(std::span<const std::byte> payload) {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(open_);
  open_->disk_writes.push_back(payload);
}

void RamCache::add_scrub(std::span<const std::byte> payload) {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(open_);
  open_->scrub.push_back(payload);
}

void RamCache::set_vmstate(std::span<const std::byte> payload) {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(open_ && open_->vmstate.empty());
  open_->vmstate = payload;
}

void RamCache::complete() {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(open_);
  if (complete_) {
    throw Error("ERR_COLO_STREAM", 0,
                "epoch " + std::to_string(open_->epoch) + " came before the last one was committed");
  }
  complete_ = std::exchange(open_, std::nullopt);
}

void RamCache::commit(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  if (complete_ && complete_->epoch == epoch) {  // INVARIANT 2: never a part of an epoch
    recycle(committed_);
    committed_ = std::exchange(complete_, std::nullopt);
  } else if (!committed_ || committed_->epoch != epoch) {
    throw Error("ERR_COLO_STATE", 0, "epoch " + std::to_string(epoch) + " is not staged");
  }
}

void RamCache::flush() {
  const Epoch* epoch = nullptr;
  {
    const std::lock_guard lock(mutex_);
    COLO_ASSERT(committed_);
    epoch = &*committed_;  // stays as it is until the next commit
  }
  for (const Lane& lane : epoch->lanes) {
    for (const std::span<const std::byte> payload : lane.payloads) applier_.apply(payload);
  }
}

std::span<const std::span<const std::byte>> RamCache::committed_disk_writes() const {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(committed_);
  return committed_->disk_writes;
}

std::span<const std::span<const std::byte>> RamCache::committed_scrub() const {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(committed_);
  return committed_->scrub;
}

std::span<const std::byte> RamCache::committed_vmstate() const {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(committed_);
  return committed_->vmstate;
}

void RamCache::discard() {
  const std::lock_guard lock(mutex_);
  recycle(open_);
  recycle(complete_);
}

void RamCache::recycle(std::optional<Epoch>& epoch) {
  if (!epoch) return;
  reserved_bytes_ -= epoch->reserved_bytes;
  for (Lane& lane : epoch->lanes) {
    for (Chunk& chunk : lane.chunks) {
      if (chunk.size != kChunkBytes || idle_.size() == kIdleChunksMax) continue;
      chunk.used = 0;
      idle_.push_back(std::move(chunk));
    }
  }
  epoch.reset();
}

}  // namespace colo
