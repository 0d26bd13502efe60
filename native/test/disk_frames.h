// The frames that a primary with disks sends, made field by field, and what their epochs do to the disks.
#pragma once

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "../core/checkpoint_stream.h"
#include "../core/disk_stream.h"
#include "engine_harness.h"

namespace colo::testing {

inline constexpr std::uint64_t kGeneration = 7;
inline constexpr std::size_t kVmstateBytes = 150;
inline constexpr std::uint64_t kDiskSize = 8 * kDiskBlockBytes + 512, kOtherSize = 2 * kDiskBlockBytes;

inline Bytes operator+(Bytes a, std::span<const std::byte> b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

struct Write {
  std::uint16_t disk;
  std::uint64_t offset;
  Bytes data;               // or
  std::uint64_t zeros = 0;  // this many bytes
};

inline Bytes payload_of(const std::vector<Write>& writes) {
  DiskEntryWriter writer(kDiskBytesMax, 3 * writes.size() + 3);
  for (const Write& write : writes) {
    if (write.zeros > 0) writer.add(write.disk, {write.offset, write.zeros, nullptr});
    if (write.zeros == 0) writer.add(write.disk, {write.offset, write.data.size(), write.data.data()});
  }
  Bytes payload;
  for (const iovec& piece : writer.pieces())
    payload = std::move(payload) + std::span(static_cast<const std::byte*>(piece.iov_base), piece.iov_len);
  return payload;
}

// The frames of one connection's part of an epoch, made field by field.
class Frames {
 public:
  explicit Frames(std::uint64_t epoch) : epoch_(epoch) {}

  Frames& frame(FrameType type, std::span<const std::byte> payload) {
    bytes = std::move(bytes) +
            encode_frame_header({type, kGeneration, epoch_, static_cast<std::uint32_t>(payload.size())}) +
            payload;
    return *this;
  }
  Frames& counted(FrameType type, std::span<const std::byte> payload) {
    digest_.add_payload(payload);
    return frame(type, payload);
  }
  Frames& disk(const Bytes& payload) { return counted(FrameType::disk, payload); }
  Frames& vmstate() {
    const std::string vmstate = vmstate_of(epoch_, kVmstateBytes);
    return counted(FrameType::vmstate, std::as_bytes(std::span(vmstate)));
  }
  // Page 3 of block 0, full of `value`.
  Frames& page(unsigned value) {
    const EntryHeader header = {EntryKind::raw, 0, 1, 3};
    digest_.add_pages(1);
    return counted(FrameType::pages,
                   Bytes() + std::as_bytes(std::span(&header, 1)) + Bytes(kPageSize, std::byte(value)));
  }
  Frames& end() { return frame(FrameType::end, encode_end(digest_.summary())); }

  Bytes bytes;

 private:
  std::uint64_t epoch_;
  EpochDigest digest_;
};

// Some writes of each kind, also over each other, whose content says the epoch.
inline std::vector<Write> writes_of(std::uint64_t epoch) {
  const auto data = [epoch](std::size_t length, unsigned salt) {
    return Bytes(length, std::byte(epoch * 16 + salt));
  };
  const std::uint64_t at = epoch * 4096;
  return {{0, at, data(4096, 1)},
          {0, 100 + at, data(3, 2)},
          {1, at, data(5000, 3)},
          {0, 5 * kDiskBlockBytes + at, data(70000, 4)},
          {0, 5 * kDiskBlockBytes + 60 + at, {}, 8192},
          {1, kOtherSize - 512, {}, 512},
          {0, 2 * kDiskBlockBytes, {}, kDiskBlockBytes + at},
          {0, kDiskSize - 512, data(512, 5)}};
}

inline Bytes epoch_bytes(std::uint64_t epoch) {
  return Frames(epoch).disk(payload_of(writes_of(epoch))).vmstate().page(epoch & 0xff).end().bytes;
}

}  // namespace colo::testing
