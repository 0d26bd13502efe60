// Received page entries into guest memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "guest_memory.h"

namespace colo {

// Payloads must have passed validate_entries() with the memory's own block lengths. Gathers many small writes
// into few calls. One thread at a time; several appliers may work on disjoint pages at once.
class PageApplier {
 public:
  explicit PageApplier(const GuestMemory& memory);

  // A checkpoint's pages. Throws ERR_COLO_GUEST_MEMORY; some of them may have been written then.
  void apply(std::span<const std::byte> payload);

  // The same for the first copy, where most of RAM is zero on both sides: a page that is zero already is only
  // read, so that the standby's QEMU doesn't come to hold all of its RAM.
  void apply_first_copy(std::span<const std::byte> payload);

 private:
  void decode(std::span<const std::byte> payload, std::function<void(std::uint16_t, PageRun)> zero_run);
  void add(std::uint16_t block, MemoryWrite write);
  void add_zeros(std::uint16_t block, std::uint64_t offset, std::uint64_t length);
  void clear_where_needed(std::uint16_t block, PageRun run);
  void flush();

  const GuestMemory& memory_;
  std::uint16_t block_ = 0;
  std::vector<MemoryWrite> writes_;
  std::vector<std::byte> read_;
};

}  // namespace colo
