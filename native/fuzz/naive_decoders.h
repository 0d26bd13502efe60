// The payloads of PAGES and DISK once more, decoded without a thought for speed: what the fuzzed decoders are
// held against. Both take payloads that the real validators have passed.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include "../core/disk_stream.h"
#include "../core/error.h"
#include "../core/page_delta.h"

namespace colo::fuzz {

using Bytes = std::vector<std::byte>;

template <class T>
T take(std::span<const std::byte>& from) {
  T value;
  COLO_ASSERT(from.size() >= sizeof value);
  std::memcpy(&value, from.data(), sizeof value);
  from = from.subspan(sizeof value);
  return value;
}

inline void copy_into(Bytes& to, std::uint64_t offset, std::span<const std::byte>& from, std::size_t length) {
  COLO_ASSERT(from.size() >= length && offset <= to.size() && length <= to.size() - offset);
  std::memcpy(to.data() + offset, from.data(), length);
  from = from.subspan(length);
}

inline void clear(Bytes& of, std::uint64_t offset, std::uint64_t length) {
  COLO_ASSERT(offset <= of.size() && length <= of.size() - offset);
  std::memset(of.data() + offset, 0, length);
}

inline void apply_pages_naively(std::span<const std::byte> payload, std::span<Bytes> blocks) {
  while (!payload.empty()) {
    const auto header = take<EntryHeader>(payload);
    COLO_ASSERT(header.block < blocks.size());
    Bytes& block = blocks[header.block];
    const std::uint64_t offset = header.page * kPageSize;
    if (header.kind == EntryKind::zero) {
      clear(block, offset, header.count * kPageSize);
    } else if (header.kind == EntryKind::raw) {
      copy_into(block, offset, payload, header.count * kPageSize);
    } else {
      COLO_ASSERT(header.kind == EntryKind::delta && header.count == 1);
      const auto mask = take<std::uint64_t>(payload);
      for (std::size_t line = 0; line < kLinesPerPage; ++line) {
        if ((mask >> line & 1) != 0) copy_into(block, offset + line * kLineSize, payload, kLineSize);
      }
    }
  }
}

inline void apply_disk_writes_naively(std::span<const std::byte> payload, std::span<Bytes> disks) {
  while (!payload.empty()) {
    const auto header = take<DiskEntryHeader>(payload);
    COLO_ASSERT(header.disk < disks.size());
    if (header.kind == DiskEntryKind::zero) {
      clear(disks[header.disk], header.offset, header.length);
      continue;
    }
    copy_into(disks[header.disk], header.offset, payload, header.length);
    while (payload.size() % 8 != 0) COLO_ASSERT(take<std::byte>(payload) == std::byte{0});
  }
}

}  // namespace colo::fuzz
