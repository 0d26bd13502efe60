// The DISK, DISK_HASHES and DISK_DIFFERS payloads of the bulk stream (docs/protocol.md, "Bulk frames"): what
// the guest wrote to its disks, and which blocks of a disk that is being brought up to date differ.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

namespace colo {

// What is hashed, compared and remembered as different is whole blocks of this size; a disk's last one may be
// shorter.
inline constexpr std::uint64_t kDiskBlockBytes = 64u << 10;
// One entry of a DISK frame: longer writes are split.
inline constexpr std::uint64_t kDiskEntryBytesMax = 512u << 10;
// Blocks asked about in one DISK_HASHES frame.
inline constexpr std::uint32_t kDiskHashesMax = 4096;

inline std::uint64_t disk_blocks(std::uint64_t size_bytes) {
  return (size_bytes + kDiskBlockBytes - 1) / kDiskBlockBytes;
}

enum class DiskEntryKind : std::uint16_t { zero = 1, data = 2 };

// As it lies on the wire, little-endian. `data` is followed by `length` bytes and zeros up to a multiple
// of 8.
struct DiskEntryHeader {
  DiskEntryKind kind;
  std::uint16_t disk;
  std::uint32_t reserved;
  std::uint64_t offset;  // bytes
  std::uint64_t
      length;  // bytes, never 0; at most kDiskEntryBytesMax for data, anything inside the disk for zero
};
static_assert(sizeof(DiskEntryHeader) == 24);

// One write of the guest: `length` bytes from byte `offset` on; `data` nullptr means zeros.
struct DiskWrite {
  std::uint64_t offset = 0;
  std::uint64_t length = 0;
  const std::byte* data = nullptr;
};

// The payload of one DISK frame under construction, as pieces for a vectored write; the data is referred to
// where it lies and must stay there until clear(). Allocates in the constructor only. Not thread-safe.
class DiskEntryWriter {
 public:
  // Room for one of the largest entries at least (asserted), which takes three pieces.
  DiskEntryWriter(std::size_t payload_bytes_max, std::size_t pieces_max);

  bool has_room() const;  // the largest entry still fits: add() needs it (asserted)
  // 1 to kDiskEntryBytesMax bytes of data, or any number of zeros but none (asserted).
  void add(std::uint16_t disk, const DiskWrite& write);

  std::span<const iovec> pieces() const { return pieces_; }
  std::size_t payload_bytes() const { return payload_bytes_; }
  void clear();

 private:
  void add_piece(const void* at, std::size_t bytes);

  std::size_t payload_bytes_max_, pieces_max_;
  std::unique_ptr<DiskEntryHeader[]> headers_;
  std::size_t headers_used_ = 0;
  std::vector<iovec> pieces_;
  std::size_t payload_bytes_ = 0;
};

// Checks a whole DISK payload from a peer: kinds, disks, ranges, lengths, padding. `disk_bytes` has the size
// of every disk. Throws ERR_COLO_STREAM with the entry's place in the payload in its text.
void validate_disk_entries(std::span<const std::byte> payload, std::span<const std::uint64_t> disk_bytes);

// The entries of a payload that validate_disk_entries() has passed, in order. The writes point into
// `payload`.
void for_each_disk_entry(std::span<const std::byte> payload,
                         const std::function<void(std::uint16_t disk, const DiskWrite& write)>& visit);

// XXH3-128 of one block, in its canonical (big-endian) form.
using BlockHash = std::array<std::byte, 16>;
BlockHash hash_of_block(std::span<const std::byte> block);

// A DISK_HASHES payload: little-endian u16 disk, u16 zero, u32 count, u64 first block, then the hashes. The
// answer, DISK_DIFFERS, has one bit a block (bit i of byte i / 8, counted from the least significant), set
// where the standby's block is another one; padded with zero bits to a multiple of 8 bytes.
struct DiskHashesHeader {
  std::uint16_t disk = 0;
  std::uint16_t reserved = 0;
  std::uint32_t count = 0;
  std::uint64_t first_block = 0;
};
static_assert(sizeof(DiskHashesHeader) == 16);

inline constexpr std::uint32_t kDiskHashesBytesMax =
    sizeof(DiskHashesHeader) + kDiskHashesMax * sizeof(BlockHash);

// Checks the header and that the payload has as many hashes as it says, for blocks that the disk has. Throws
// ERR_COLO_STREAM.
DiskHashesHeader validate_disk_hashes(std::span<const std::byte> payload,
                                      std::span<const std::uint64_t> disk_bytes);
// The hashes of a payload that validate_disk_hashes() has passed.
std::span<const BlockHash> hashes_of(std::span<const std::byte> payload);

constexpr std::size_t differs_bytes(std::uint32_t count) { return (std::size_t{count} + 63) / 64 * 8; }

}  // namespace colo
