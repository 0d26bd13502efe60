#define XXH_INLINE_ALL
#include "disk_stream.h"

#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <string>

#include "error.h"

static_assert(std::endian::native == std::endian::little, "disk entries are little-endian on the wire");

namespace colo {
namespace {

constexpr std::size_t kAlignment = 8;
constexpr std::size_t kPiecesOfEntryMax = 3;  // header, data, padding
constexpr std::byte kPadding[kAlignment] = {};

constexpr std::uint64_t padding_bytes(std::uint64_t length) {
  return (kAlignment - length % kAlignment) % kAlignment;
}

constexpr std::size_t kEntryBytesMax =
    sizeof(DiskEntryHeader) + kDiskEntryBytesMax + padding_bytes(kDiskEntryBytesMax);

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

// What follows the header of an entry that is right.
std::uint64_t body_bytes(const DiskEntryHeader& header) {
  return header.kind == DiskEntryKind::data ? header.length + padding_bytes(header.length) : 0;
}

}  // namespace

// --- DISK ---

DiskEntryWriter::DiskEntryWriter(std::size_t payload_bytes_max, std::size_t pieces_max)
    : payload_bytes_max_(payload_bytes_max),
      pieces_max_(pieces_max),
      headers_(std::make_unique_for_overwrite<DiskEntryHeader[]>(pieces_max)) {
  COLO_ASSERT(payload_bytes_max >= kEntryBytesMax && pieces_max >= kPiecesOfEntryMax);
  pieces_.reserve(pieces_max);
}

bool DiskEntryWriter::has_room() const {
  return payload_bytes_ + kEntryBytesMax <= payload_bytes_max_ &&
         pieces_.size() + kPiecesOfEntryMax <= pieces_max_;
}

void DiskEntryWriter::add(std::uint16_t disk, const DiskWrite& write) {
  COLO_ASSERT(has_room() && write.length > 0);
  DiskEntryHeader& header = headers_[headers_used_++];
  const bool zeros = write.data == nullptr;
  header = {zeros ? DiskEntryKind::zero : DiskEntryKind::data, disk, 0, write.offset, write.length};
  add_piece(&header, sizeof header);
  if (zeros) return;
  COLO_ASSERT(write.length <= kDiskEntryBytesMax);
  add_piece(write.data, write.length);
  if (const std::size_t padding = padding_bytes(write.length); padding > 0) add_piece(kPadding, padding);
}

void DiskEntryWriter::add_piece(const void* at, std::size_t bytes) {
  pieces_.push_back({const_cast<void*>(at), bytes});
  payload_bytes_ += bytes;
}

void DiskEntryWriter::clear() {
  headers_used_ = 0;
  pieces_.clear();
  payload_bytes_ = 0;
}

void validate_disk_entries(std::span<const std::byte> payload, std::span<const std::uint64_t> disk_bytes) {
  std::size_t at = 0;
  const auto refuse = [&at](const char* what) {
    throw Error("ERR_COLO_STREAM", 0, "disk entry at byte " + std::to_string(at) + ": " + what);
  };
  while (at < payload.size()) {
    if (payload.size() - at < sizeof(DiskEntryHeader)) refuse("its header is cut off");
    const auto header = load<DiskEntryHeader>(payload.data() + at);
    if (header.kind != DiskEntryKind::zero && header.kind != DiskEntryKind::data)
      refuse("its kind is unknown");
    if (header.disk >= disk_bytes.size()) refuse("there is no such disk");
    if (header.reserved != 0) refuse("its reserved bytes are not zero");
    if (header.length == 0) refuse("it is empty");
    const std::uint64_t size = disk_bytes[header.disk];
    if (header.offset >= size || header.length > size - header.offset)
      refuse("it reaches past the end of its disk");
    if (header.kind == DiskEntryKind::data && header.length > kDiskEntryBytesMax)
      refuse("it has more data than an entry may have");
    const auto rest = payload.subspan(at + sizeof header);
    const std::uint64_t body = body_bytes(header);
    if (body > rest.size()) refuse("its data is cut off");
    if (body > 0 && std::memcmp(rest.data() + header.length, kPadding, body - header.length) != 0)
      refuse("its padding is not zero");
    at += sizeof header + body;
  }
}

void for_each_disk_entry(std::span<const std::byte> payload,
                         const std::function<void(std::uint16_t disk, const DiskWrite& write)>& visit) {
  std::size_t at = 0;
  while (at < payload.size()) {
    const auto header = load<DiskEntryHeader>(payload.data() + at);
    at += sizeof header;
    const bool zeros = header.kind == DiskEntryKind::zero;
    visit(header.disk, {header.offset, header.length, zeros ? nullptr : payload.data() + at});
    at += body_bytes(header);
  }
  COLO_ASSERT(at == payload.size());
}

// --- DISK_HASHES ---

BlockHash hash_of_block(std::span<const std::byte> block) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(block.data(), block.size()));
  BlockHash hash;
  static_assert(sizeof canonical == sizeof hash);
  std::memcpy(hash.data(), &canonical, sizeof hash);
  return hash;
}

DiskHashesHeader validate_disk_hashes(std::span<const std::byte> payload,
                                      std::span<const std::uint64_t> disk_bytes) {
  const auto refuse = [](const char* what) {
    throw Error("ERR_COLO_STREAM", 0, std::string("DISK_HASHES: ") + what);
  };
  if (payload.size() < sizeof(DiskHashesHeader)) refuse("its header is cut off");
  const auto header = load<DiskHashesHeader>(payload.data());
  if (header.disk >= disk_bytes.size()) refuse("there is no such disk");
  if (header.reserved != 0) refuse("its reserved bytes are not zero");
  if (header.count == 0 || header.count > kDiskHashesMax) refuse("impossible number of hashes");
  if (payload.size() != sizeof header + header.count * sizeof(BlockHash))
    refuse("it has another number of hashes than it says");
  const std::uint64_t blocks = disk_blocks(disk_bytes[header.disk]);
  if (header.first_block >= blocks || header.count > blocks - header.first_block)
    refuse("it reaches past the end of its disk");
  return header;
}

std::span<const BlockHash> hashes_of(std::span<const std::byte> payload) {
  COLO_ASSERT(payload.size() >= sizeof(DiskHashesHeader));
  const auto hashes = payload.subspan(sizeof(DiskHashesHeader));
  return {reinterpret_cast<const BlockHash*>(hashes.data()), hashes.size() / sizeof(BlockHash)};
}

}  // namespace colo
