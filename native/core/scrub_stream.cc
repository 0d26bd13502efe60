#define XXH_INLINE_ALL
#include "scrub_stream.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>

#include "error.h"

namespace colo {
namespace {

// Read at once by the standby: large enough to make the system call cheap, small enough to be hashed out of
// the cache.
constexpr std::uint64_t kBouncePages = 32;

constexpr std::size_t mask_bytes(std::uint32_t count) { return (std::size_t{count} + 63) / 64 * 8; }

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

bool bit_of(std::span<const std::byte> mask, std::uint64_t i) {
  return (mask[i / 8] >> i % 8 & std::byte{1}) != std::byte{0};
}

std::span<const std::byte> mask_of(std::span<const std::byte> payload, const ScrubHeader& header) {
  return payload.subspan(sizeof header, mask_bytes(header.count));
}

std::uint64_t bits_set(std::span<const std::byte> mask) {
  std::uint64_t bits = 0;
  for (const std::byte byte : mask)
    bits += static_cast<std::uint64_t>(std::popcount(static_cast<unsigned char>(byte)));
  return bits;
}

[[noreturn]] void throw_differs(const RamBlock& block, std::uint64_t page) {
  char address[32];
  std::snprintf(address, sizeof address, "0x%" PRIx64, page * kPageSize);
  throw Error("ERR_COLO_SCRUB", 0,
              "the page at address " + std::string(address) + " of RAM block " + block.name +
                  " is another one than the primary's");
}

}  // namespace

std::uint64_t hash_of_page(const std::byte* page) { return XXH3_64bits(page, kPageSize); }

std::vector<std::byte> encode_scrub(std::uint16_t block, PageRun run, std::span<const std::uint64_t> hashes,
                                    const std::vector<bool>& left_out) {
  COLO_ASSERT(run.count > 0 && run.count <= kScrubPagesMax);
  COLO_ASSERT(hashes.size() == run.count && left_out.size() == run.count);
  const ScrubHeader header = {block, 0, static_cast<std::uint32_t>(run.count), run.first};
  std::vector<std::byte> payload(sizeof header + mask_bytes(header.count));
  payload.reserve(payload.size() + hashes.size_bytes());
  std::memcpy(payload.data(), &header, sizeof header);
  for (std::size_t i = 0; i < hashes.size(); ++i) {
    if (left_out[i]) {
      payload[sizeof header + i / 8] |= std::byte{1} << i % 8;
    } else {
      const auto bytes = std::as_bytes(hashes.subspan(i, 1));
      payload.insert(payload.end(), bytes.begin(), bytes.end());
    }
  }
  COLO_ASSERT(payload.size() >= kScrubBytesMin);
  return payload;
}

ScrubHeader validate_scrub(std::span<const std::byte> payload, std::span<const std::uint64_t> block_pages) {
  const auto refuse = [](const char* what) {
    throw Error("ERR_COLO_STREAM", 0, std::string("SCRUB: ") + what);
  };
  if (payload.size() < kScrubBytesMin) refuse("it is cut off");
  const auto header = load<ScrubHeader>(payload.data());
  if (header.block >= block_pages.size()) refuse("there is no such RAM block");
  if (header.reserved != 0) refuse("its reserved bytes are not zero");
  if (header.count == 0 || header.count > kScrubPagesMax) refuse("impossible number of pages");
  const std::uint64_t pages = block_pages[header.block];
  if (header.first_page >= pages || header.count > pages - header.first_page)
    refuse("it reaches past the end of its RAM block");
  if (payload.size() < sizeof header + mask_bytes(header.count)) refuse("its mask is cut off");
  const auto mask = mask_of(payload, header);
  for (std::uint64_t i = header.count; i < mask.size() * 8; ++i) {
    if (bit_of(mask, i)) refuse("its mask has bits of pages that it isn't about");
  }
  const std::uint64_t hashes = header.count - bits_set(mask);
  if (payload.size() != sizeof header + mask.size() + hashes * sizeof(std::uint64_t))
    refuse("it has another number of hashes than its mask says");
  return header;
}

std::uint64_t check_scrub(const GuestMemory& memory, std::span<const std::byte> payload) {
  const auto header = load<ScrubHeader>(payload.data());
  const auto mask = mask_of(payload, header);
  const std::byte* hash = payload.data() + sizeof header + mask.size();
  const auto bounce = std::make_unique_for_overwrite<std::byte[]>(kBouncePages * kPageSize);
  std::uint64_t looked_at = 0;
  for (std::uint64_t done = 0; done < header.count; done += kBouncePages) {
    const std::uint64_t pages = std::min<std::uint64_t>(kBouncePages, header.count - done);
    memory.read(header.block, (header.first_page + done) * kPageSize, {bounce.get(), pages * kPageSize});
    for (std::uint64_t i = 0; i < pages; ++i) {
      if (bit_of(mask, done + i)) continue;
      if (hash_of_page(bounce.get() + i * kPageSize) != load<std::uint64_t>(hash))
        throw_differs(memory.block(header.block), header.first_page + done + i);
      hash += sizeof(std::uint64_t);
      ++looked_at;
    }
  }
  return looked_at;
}

}  // namespace colo
