// The page entries of a PAGES frame (docs/protocol.md): how a captured page becomes zero, unchanged, a delta
// or raw, and back.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "guest_memory.h"
#include "page_kernels.h"

namespace colo {

enum class EntryKind : std::uint16_t { zero = 1, delta = 2, raw = 3 };

// As it lies on the wire; entries are little-endian and so is every machine that this is built for.
struct EntryHeader {
  EntryKind kind;
  std::uint16_t block;
  std::uint32_t count;
  std::uint64_t page;
};
static_assert(sizeof(EntryHeader) == 16);

struct PageCounts {
  std::uint64_t zero = 0, unchanged = 0, delta = 0, raw = 0;

  std::uint64_t on_wire() const { return zero + delta + raw; }
  PageCounts& operator+=(const PageCounts& other);
};

// The payload of one PAGES frame under construction, as pieces for a vectored write: headers and changed
// lines are gathered in a buffer of its own, whole pages are referred to where they lie, so they must stay
// there until clear(). Runs of zero pages, and of raw pages, that follow each other become one entry.
// Allocates in the constructor only. Not thread-safe.
class EntryWriter {
 public:
  EntryWriter(std::size_t payload_bytes_max, std::size_t pieces_max);

  // The page functions below need this to be true (asserted): the largest entry still fits.
  bool has_room() const;

  void add_zero(std::uint16_t block, std::uint64_t page);
  void add_delta(std::uint16_t block, std::uint64_t page, const std::byte* data, std::uint64_t mask);
  void add_raw(std::uint16_t block, std::uint64_t page, const std::byte* data);

  std::span<const iovec> pieces() const { return pieces_; }
  std::size_t payload_bytes() const { return payload_bytes_; }
  bool refers_to_pages() const { return refers_to_pages_; }
  void clear();

 private:
  EntryHeader* begin_entry(EntryKind kind, std::uint16_t block, std::uint64_t page);
  bool extends_last(EntryKind kind, std::uint16_t block, std::uint64_t page) const;
  void add_own_piece(std::byte* at, std::size_t bytes);

  std::size_t payload_bytes_max_, pieces_max_;
  std::unique_ptr<std::byte[]> own_;
  std::size_t own_used_ = 0;
  std::vector<iovec> pieces_;
  std::size_t payload_bytes_ = 0;
  bool refers_to_pages_ = false;
  EntryHeader* last_ = nullptr;
};

// Encodes one page against `base`, the same page as it was last sent, and brings `base` up to date in the
// same pass, writing only the lines that changed. INVARIANT 3: `base` equals what was put on the wire, so
// after a failure of the link it is unknown. Without a base (nullptr) a page is zero or raw.
void encode_page(EntryWriter& out, const PageKernel& kernel, std::uint16_t block, std::uint64_t page,
                 const std::byte* data, std::byte* base, PageCounts& counts);

// The same for the first copy: nothing is known of the other side, so there is no delta and no unchanged
// page, only zero and raw; `base` (or nullptr) becomes equal to `data`, and a zero page of it that nobody has
// touched stays untouched.
void encode_first_copy(EntryWriter& out, const PageKernel& kernel, std::uint16_t block, std::uint64_t page,
                       const std::byte* data, std::byte* base, PageCounts& counts);

// Checks a whole payload from a peer: kinds, blocks, ranges, counts, masks, lengths. `block_pages` has the
// length of every block, in pages. Returns the number of pages in it. Throws ERR_COLO_STREAM with the entry's
// offset in its text.
std::uint64_t validate_entries(std::span<const std::byte> payload, std::span<const std::uint64_t> block_pages,
                               bool deltas_allowed);

// Turns a payload that validate_entries() has passed into writes to guest memory, in order; `zero_run` gets
// the zero pages instead. The writes point into `payload`.
struct EntrySink {
  std::function<void(std::uint16_t block, MemoryWrite write)> write;
  std::function<void(std::uint16_t block, PageRun run)> zero_run;
};
void decode_entries(std::span<const std::byte> payload, const EntrySink& sink);

}  // namespace colo
