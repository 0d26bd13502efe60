// The NBD protocol's numbers (github.com/NetworkBlockDevice/nbd, doc/proto.md), as far as they are spoken
// here: fixed newstyle negotiation and the transmission phase. All integers are big-endian.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "byte_order.h"

namespace colo::nbd {

inline constexpr std::uint64_t kMagic = 0x4e42444d41474943;        // "NBDMAGIC"
inline constexpr std::uint64_t kOptionMagic = 0x49484156454f5054;  // "IHAVEOPT"
inline constexpr std::uint64_t kOptionReplyMagic = 0x3e889045565a9;
inline constexpr std::uint32_t kRequestMagic = 0x25609513;
inline constexpr std::uint32_t kSimpleReplyMagic = 0x67446698;
inline constexpr std::uint32_t kStructuredReplyMagic = 0x668e33ef;

// Handshake flags, the same bits on both sides.
inline constexpr std::uint16_t kFixedNewstyle = 1 << 0, kNoZeroes = 1 << 1;

enum Option : std::uint32_t {
  kOptionExportName = 1,
  kOptionAbort = 2,
  kOptionList = 3,
  kOptionInfo = 6,
  kOptionGo = 7,
  kOptionStructuredReply = 8,
};

enum OptionReply : std::uint32_t {
  kReplyAck = 1,
  kReplyServer = 2,
  kReplyInfo = 3,
  kReplyErrorBit = 1u << 31,
  kReplyErrorUnsupported = kReplyErrorBit + 1,
  kReplyErrorInvalid = kReplyErrorBit + 3,
  kReplyErrorUnknown = kReplyErrorBit + 6,
};

inline constexpr std::uint16_t kInfoExport = 0, kInfoBlockSize = 3;

// Transmission flags.
inline constexpr std::uint16_t kHasFlags = 1 << 0, kSendFlush = 1 << 2, kSendFua = 1 << 3, kSendTrim = 1 << 5,
                               kSendWriteZeroes = 1 << 6, kCanMultiConn = 1 << 8;

enum Command : std::uint16_t {
  kRead = 0,
  kWrite = 1,
  kDisconnect = 2,
  kFlush = 3,
  kTrim = 4,
  kWriteZeroes = 6,
};
inline constexpr std::uint16_t kCommandFua = 1 << 0, kCommandNoHole = 1 << 1;

// The errors of replies.
inline constexpr std::uint32_t kErrorInvalid = 22, kErrorNoSpace = 28, kErrorNotSupported = 95;

// Structured replies.
inline constexpr std::uint16_t kChunkDone = 1 << 0;  // flag
enum ChunkType : std::uint16_t {
  kChunkNone = 0,
  kChunkOffsetData = 1,
  kChunkOffsetHole = 2,
  kChunkErrorBit = 1 << 15,
};

inline constexpr std::size_t kRequestBytes = 28, kSimpleReplyBytes = 16, kChunkHeaderBytes = 20;

struct Request {
  std::uint16_t flags = 0;
  std::uint16_t command = 0;
  std::uint64_t handle = 0;
  std::uint64_t offset = 0;
  std::uint32_t length = 0;
};

inline Request parse_request(std::span<const std::byte, kRequestBytes> bytes) {
  return {load_big_endian<std::uint16_t>(bytes.data() + 4), load_big_endian<std::uint16_t>(bytes.data() + 6),
          load_big_endian<std::uint64_t>(bytes.data() + 8), load_big_endian<std::uint64_t>(bytes.data() + 16),
          load_big_endian<std::uint32_t>(bytes.data() + 24)};
}

// A message built field by field.
class Message {
 public:
  template <std::integral T>
  Message& put(T value) {
    bytes_.resize(bytes_.size() + sizeof(T));
    store_big_endian(&bytes_.back() + 1 - sizeof(T), value);
    return *this;
  }
  Message& put(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace colo::nbd
