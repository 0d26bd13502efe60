// The SCRUB payload of the bulk stream (docs/protocol.md, "Bulk frames"): the primary's hashes of pages that
// aren't part of the checkpoint, and the standby's look at its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "guest_memory.h"

namespace colo {

// Pages of one frame.
inline constexpr std::uint32_t kScrubPagesMax = 4096;

// As it lies on the wire, little-endian. Then one bit a page (bit i of byte i / 8, counted from the least
// significant), set where the page is left out, padded with zero bits to a multiple of 8 bytes; then the
// hashes of the pages that are not left out, one at least.
struct ScrubHeader {
  std::uint16_t block = 0;
  std::uint16_t reserved = 0;
  std::uint32_t count = 0;
  std::uint64_t first_page = 0;
};
static_assert(sizeof(ScrubHeader) == 16);

inline constexpr std::uint32_t kScrubBytesMin = sizeof(ScrubHeader) + 8 + sizeof(std::uint64_t);
inline constexpr std::uint32_t kScrubBytesMax =
    sizeof(ScrubHeader) + kScrubPagesMax / 8 + kScrubPagesMax * sizeof(std::uint64_t);

std::uint64_t hash_of_page(const std::byte* page);  // XXH3-64

// One frame's payload: `hashes` and `left_out` have an element for each page of `run` (asserted), 1 to
// kScrubPagesMax of them, and one at least is not left out.
std::vector<std::byte> encode_scrub(std::uint16_t block, PageRun run, std::span<const std::uint64_t> hashes,
                                    const std::vector<bool>& left_out);

// Checks the header, the mask and that there are as many hashes as the mask says, for pages that the block
// has. `block_pages` has the length of every block. Throws ERR_COLO_STREAM.
ScrubHeader validate_scrub(std::span<const std::byte> payload, std::span<const std::uint64_t> block_pages);

// INVARIANT 8: holds the hashes of a payload that validate_scrub() has passed against `memory`, whose guest
// stands. Returns how many pages it looked at. Throws ERR_COLO_SCRUB, with block and address in its text, at
// the first page that is another one than the primary's, and ERR_COLO_GUEST_MEMORY.
std::uint64_t check_scrub(const GuestMemory& memory, std::span<const std::byte> payload);

}  // namespace colo
