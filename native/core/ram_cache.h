// The secondary's RAM cache: checkpoints that have arrived, whole or in part, and have not reached guest RAM
// yet.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <vector>

#include "guest_memory.h"
#include "page_applier.h"

namespace colo {

// ATOMICITY (invariant 2): an epoch is opened, filled by its lanes (one for each bulk connection), completed,
// committed and flushed; or it is thrown away whole before it is committed. Each step moves it to the next
// place, and there is one place for each: open, complete, committed. The committed one stays after its flush,
// until the next is committed, so that a take-over can flush it once more.
//
// Thread rules: open, commit and discard come from one owner; reserve, add_pages, add_disk_writes, add_scrub
// and set_vmstate from one thread a lane; complete from any of these; flush and what is committed_... from
// one thread of its own, between a commit and the next. discard() needs the lanes' threads to be at rest.
class RamCache {
 public:
  // `limit_bytes` is the most payload that all epochs together may hold.
  RamCache(const GuestMemory& memory, std::uint64_t limit_bytes);

  // The one before is complete (asserted).
  void open(std::uint64_t epoch, unsigned lanes);

  // Room for the payload of one frame, contiguous, in memory that is used again and again. It stays in place
  // as long as its epoch lives. Throws ERR_COLO_STAGING_LIMIT.
  std::span<std::byte> reserve(unsigned lane, std::size_t bytes);

  // All take a payload from reserve(): page entries that validate_entries() has passed, in the order in which
  // they will be applied within their lane; disk entries that validate_disk_entries() has passed, from one
  // lane only, whose order is kept too; hashes that validate_scrub() has passed; and the epoch's device
  // state, once.
  void add_pages(unsigned lane, std::span<const std::byte> payload);
  void add_disk_writes(std::span<const std::byte> payload);
  void add_scrub(std::span<const std::byte> payload);
  void set_vmstate(std::span<const std::byte> payload);

  // Everything of the open epoch has arrived and was found right: from now on it can be committed. Throws
  // ERR_COLO_STREAM when the one before hasn't been committed yet: the peer doesn't wait for its answers.
  void complete();

  // The complete epoch takes the place of the committed one; discard() doesn't touch it from now on. To
  // commit the committed epoch again, for another flush, changes nothing. Throws ERR_COLO_STATE when `epoch`
  // is neither.
  void commit(std::uint64_t epoch);

  // Writes the committed epoch's pages to guest RAM. Throws ERR_COLO_GUEST_MEMORY.
  void flush();
  // Valid until the next commit.
  std::span<const std::span<const std::byte>> committed_disk_writes() const;
  std::span<const std::span<const std::byte>> committed_scrub() const;
  std::span<const std::byte> committed_vmstate() const;

  // Throws away what isn't committed.
  void discard();

 private:
  struct Chunk {
    std::unique_ptr<std::byte[]> bytes;
    std::size_t size = 0, used = 0;
  };
  struct Lane {
    std::vector<Chunk> chunks;
    std::vector<std::span<const std::byte>> payloads;
  };
  struct Epoch {
    std::uint64_t epoch = 0;
    std::uint64_t reserved_bytes = 0;
    std::vector<Lane> lanes;
    std::vector<std::span<const std::byte>> disk_writes, scrub;
    std::span<const std::byte> vmstate;
  };

  Chunk take_chunk(std::size_t bytes);
  void recycle(std::optional<Epoch>& epoch);

  const std::uint64_t limit_bytes_;
  PageApplier applier_;
  mutable std::mutex
      mutex_;  // guards everything below; what lies in chunks belongs to whoever fills or flushes it
  std::optional<Epoch> open_, complete_, committed_;
  std::uint64_t reserved_bytes_ = 0;
  std::vector<Chunk> idle_;
};

}  // namespace colo
