#define XXH_INLINE_ALL
#include "checkpoint_stream.h"

#include <xxhash.h>

#include <algorithm>
#include <chrono>
#include <cstring>

#include "disk_stream.h"
#include "error.h"

namespace colo {
namespace {

constexpr char kPrefaceMagic[] = "COLOBLK1";
constexpr std::uint32_t kFrameMagic = 0x43424c4b;  // "CBLK"
constexpr std::uint16_t kVersion = 1;

// Small enough to lie in the second-level cache from encoding to sending, large enough that the system calls
// don't count.
constexpr std::size_t kPagesBytesAimed = 256u << 10;
constexpr std::size_t kPiecesMax = 512;
static_assert(kPagesBytesAimed <= kPagesBytesMax);

template <class T>
void put_big_endian(std::byte* at, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    at[i] = static_cast<std::byte>(value >> (8 * (sizeof(T) - 1 - i)));
}

template <class T>
T big_endian(const std::byte* at) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value = value << 8 | static_cast<std::uint64_t>(at[i]);
  return static_cast<T>(value);
}

bool all_zero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte byte) { return byte == std::byte{0}; });
}

iovec piece_of(std::span<const std::byte> bytes) {
  return {const_cast<std::byte*>(bytes.data()), bytes.size()};
}

bool length_allowed(FrameType type, std::uint32_t length) {
  switch (type) {
    case FrameType::pages:
      return length > 0 && length <= kPagesBytesMax;
    case FrameType::vmstate:
      return length > 0 && length <= kVmstateBytesMax;
    case FrameType::end:
      return length == kEndBytes;
    case FrameType::disk:
      return length > 0 && length % 8 == 0 && length <= kDiskBytesMax;
    case FrameType::disk_hashes:
      return length > sizeof(DiskHashesHeader) && length % sizeof(BlockHash) == 0 &&
             length <= kDiskHashesBytesMax;
    case FrameType::disk_differs:
      return length > 0 && length % 8 == 0 && length <= differs_bytes(kDiskHashesMax);
    case FrameType::scrub:
      return length >= kScrubBytesMin && length % 8 == 0 && length <= kScrubBytesMax;
  }
  throw Error("ERR_COLO_STREAM", 0, "unknown frame type " + std::to_string(static_cast<unsigned>(type)));
}

}  // namespace

// --- preface
// -------------------------------------------------------------------------------------------------------------------------

std::array<std::byte, kBulkPrefaceBytes> encode_preface(const BulkPreface& preface) {
  COLO_ASSERT(preface.token.size() == kTokenBytes);
  std::array<std::byte, kBulkPrefaceBytes> bytes = {};
  std::memcpy(bytes.data(), kPrefaceMagic, 8);
  std::memcpy(bytes.data() + 8, preface.token.data(), kTokenBytes);
  put_big_endian(bytes.data() + 24, preface.generation);
  put_big_endian(bytes.data() + 32, preface.index);
  put_big_endian(bytes.data() + 34, preface.connections);
  return bytes;
}

BulkPreface parse_preface(std::span<const std::byte> bytes) {
  const auto refuse = [](const char* what) {
    throw Error("ERR_COLO_PEER", 0, std::string("bulk connection refused: ") + what);
  };
  if (bytes.size() != kBulkPrefaceBytes || std::memcmp(bytes.data(), kPrefaceMagic, 8) != 0)
    refuse("not a bulk preface");
  if (!all_zero(bytes.subspan(36))) refuse("reserved bytes of its preface are not zero");
  BulkPreface preface;
  preface.token.assign(reinterpret_cast<const char*>(bytes.data()) + 8, kTokenBytes);
  preface.generation = big_endian<std::uint64_t>(bytes.data() + 24);
  preface.index = big_endian<std::uint16_t>(bytes.data() + 32);
  preface.connections = big_endian<std::uint16_t>(bytes.data() + 34);
  if (preface.connections == 0 || preface.connections > kConnectionsMax)
    refuse("impossible number of connections");
  if (preface.index >= preface.connections) refuse("its index is not below the number of connections");
  return preface;
}

// --- frames
// --------------------------------------------------------------------------------------------------------------------------

std::array<std::byte, kFrameHeaderBytes> encode_frame_header(const FrameHeader& header) {
  COLO_ASSERT(length_allowed(header.type, header.length));
  std::array<std::byte, kFrameHeaderBytes> bytes = {};
  put_big_endian(bytes.data(), kFrameMagic);
  put_big_endian(bytes.data() + 4, kVersion);
  put_big_endian(bytes.data() + 6, static_cast<std::uint16_t>(header.type));
  put_big_endian(bytes.data() + 8, header.generation);
  put_big_endian(bytes.data() + 16, header.epoch);
  put_big_endian(bytes.data() + 24, header.length);
  return bytes;
}

FrameHeader parse_frame_header(std::span<const std::byte, kFrameHeaderBytes> bytes) {
  const auto refuse = [](const std::string& what) {
    throw Error("ERR_COLO_STREAM", 0, "bulk frame: " + what);
  };
  if (big_endian<std::uint32_t>(bytes.data()) != kFrameMagic) refuse("wrong magic");
  const auto version = big_endian<std::uint16_t>(bytes.data() + 4);
  if (version != kVersion) refuse("version " + std::to_string(version) + " where 1 is spoken");
  FrameHeader header;
  header.type = static_cast<FrameType>(big_endian<std::uint16_t>(bytes.data() + 6));
  header.generation = big_endian<std::uint64_t>(bytes.data() + 8);
  header.epoch = big_endian<std::uint64_t>(bytes.data() + 16);
  header.length = big_endian<std::uint32_t>(bytes.data() + 24);
  if (!length_allowed(header.type, header.length)) {
    refuse("its type doesn't allow a length of " + std::to_string(header.length));
  }
  if (!all_zero(bytes.subspan(28))) refuse("reserved bytes are not zero");
  return header;
}

std::array<std::byte, kEndBytes> encode_end(const EpochSummary& summary) {
  std::array<std::byte, kEndBytes> bytes = {};
  put_big_endian(bytes.data(), summary.pages);
  put_big_endian(bytes.data() + 8, summary.payload_bytes);
  put_big_endian(bytes.data() + 16, summary.hash);
  return bytes;
}

EpochSummary parse_end(std::span<const std::byte, kEndBytes> bytes) {
  if (!all_zero(bytes.subspan(24))) throw Error("ERR_COLO_STREAM", 0, "END: reserved bytes are not zero");
  return {big_endian<std::uint64_t>(bytes.data()), big_endian<std::uint64_t>(bytes.data() + 8),
          big_endian<std::uint64_t>(bytes.data() + 16)};
}

FrameHeader receive_frame_header(SocketCalls& calls, int fd, std::uint64_t generation) {
  std::array<std::byte, kFrameHeaderBytes> bytes;
  receive_all(calls, fd, bytes);
  const FrameHeader header = parse_frame_header(bytes);
  if (header.generation != generation) {
    throw Error("ERR_COLO_STREAM", 0,
                "bulk frame: generation " + std::to_string(header.generation) +
                    " in a session of generation " + std::to_string(generation));
  }
  return header;
}

// --- digest
// --------------------------------------------------------------------------------------------------------------------------

struct EpochDigest::Hash {
  XXH3_state_t state;
};

EpochDigest::EpochDigest() : hash_(std::make_unique<Hash>()) { reset(); }
EpochDigest::~EpochDigest() = default;

void EpochDigest::reset() {
  XXH3_64bits_reset(&hash_->state);
  pages_ = payload_bytes_ = 0;
}

void EpochDigest::add_payload(std::span<const std::byte> bytes) {
  XXH3_64bits_update(&hash_->state, bytes.data(), bytes.size());
  payload_bytes_ += bytes.size();
}

EpochSummary EpochDigest::summary() const {
  return {pages_, payload_bytes_, XXH3_64bits_digest(&hash_->state)};
}

// --- writer
// --------------------------------------------------------------------------------------------------------------------------

StreamWriter::StreamWriter(SocketCalls& calls, int fd, std::uint64_t generation)
    : calls_(calls), fd_(fd), generation_(generation), entries_(kPagesBytesAimed, kPiecesMax) {
  pieces_.reserve(kPiecesMax + 3);
}

void StreamWriter::begin_epoch(std::uint64_t epoch) {
  COLO_ASSERT(entries_.payload_bytes() == 0 && headers_used_ == 0);
  COLO_ASSERT(!disk_entries_ || disk_entries_->payload_bytes() == 0);
  epoch_ = epoch;
  digest_.reset();
  wire_bytes_ = send_ns_ = 0;
}

EntryWriter& StreamWriter::entries() {
  if (!entries_.has_room()) send_gathered();
  return entries_;
}

void StreamWriter::put(std::span<const std::byte> bytes) {
  pieces_.push_back(piece_of(bytes));
  wire_bytes_ += bytes.size();
}

void StreamWriter::put_frame(FrameType type, std::span<const iovec> payload, std::size_t length) {
  headers_[headers_used_] =
      encode_frame_header({type, generation_, epoch_, static_cast<std::uint32_t>(length)});
  put(headers_[headers_used_++]);
  for (const iovec& piece : payload) put({static_cast<const std::byte*>(piece.iov_base), piece.iov_len});
}

void StreamWriter::put_pages() {
  if (entries_.payload_bytes() == 0) return;
  for (const iovec& piece : entries_.pieces())
    digest_.add_payload({static_cast<const std::byte*>(piece.iov_base), piece.iov_len});
  put_frame(FrameType::pages, entries_.pieces(), entries_.payload_bytes());
}

void StreamWriter::put_disk() {
  if (!disk_entries_ || disk_entries_->payload_bytes() == 0) return;
  for (const iovec& piece : disk_entries_->pieces())
    digest_.add_payload({static_cast<const std::byte*>(piece.iov_base), piece.iov_len});
  put_frame(FrameType::disk, disk_entries_->pieces(), disk_entries_->payload_bytes());
}

// Everything that was put leaves, and all that waited has been put.
void StreamWriter::send_put() {
  send_all(calls_, fd_, pieces_);
  pieces_.clear();
  headers_used_ = 0;
  entries_.clear();
  if (disk_entries_) disk_entries_->clear();
}

namespace {

// Adds the time of its own life to `total_ns`.
class Stopwatch {
 public:
  explicit Stopwatch(std::uint64_t& total_ns) : total_ns_(total_ns) {}
  ~Stopwatch() {
    const auto spent = std::chrono::steady_clock::now() - begin_;
    total_ns_ +=
        static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(spent).count());
  }

 private:
  std::uint64_t& total_ns_;
  std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

}  // namespace

void StreamWriter::send_gathered() {
  const Stopwatch stopwatch(send_ns_);
  put_pages();
  put_disk();
  send_put();
}

void StreamWriter::add_disk_write(std::uint16_t disk, const DiskWrite& write) {
  if (!disk_entries_) disk_entries_.emplace(kDiskBytesMax, kPiecesMax);
  if (!disk_entries_->has_room() || disk_entries_->payload_bytes() >= kPagesBytesAimed) send_gathered();
  disk_entries_->add(disk, write);
}

void StreamWriter::send_disk_hashes(std::uint16_t disk, std::uint64_t first_block,
                                    std::span<const BlockHash> hashes) {
  COLO_ASSERT(!hashes.empty() && hashes.size() <= kDiskHashesMax);
  const Stopwatch stopwatch(send_ns_);
  const DiskHashesHeader header = {disk, 0, static_cast<std::uint32_t>(hashes.size()), first_block};
  const std::array<iovec, 2> pieces = {piece_of(std::as_bytes(std::span(&header, 1))),
                                       piece_of(std::as_bytes(hashes))};
  // Behind everything that was written before: the standby compares what it has after that.
  put_pages();
  put_disk();
  put_frame(FrameType::disk_hashes, pieces, sizeof header + hashes.size_bytes());
  send_put();
}

void StreamWriter::receive_disk_differs(std::uint32_t count, std::span<std::byte> differs) {
  COLO_ASSERT(count > 0 && differs.size() == differs_bytes(count));
  const FrameHeader header = receive_frame_header(calls_, fd_, generation_);
  if (header.type != FrameType::disk_differs || header.epoch != epoch_ || header.length != differs.size())
    throw Error("ERR_COLO_STREAM", 0,
                "the standby's answer to DISK_HASHES is another frame than was asked for");
  receive_all(calls_, fd_, differs);
  for (std::size_t bit = count; bit < differs.size() * 8; ++bit) {
    if ((differs[bit / 8] >> bit % 8 & std::byte{1}) != std::byte{0})
      throw Error("ERR_COLO_STREAM", 0,
                  "the standby's DISK_DIFFERS has bits of blocks that it wasn't asked about");
  }
}

void StreamWriter::send_vmstate(std::span<const std::byte> bytes) { send_alone(FrameType::vmstate, bytes); }

void StreamWriter::send_scrub(std::span<const std::byte> payload) { send_alone(FrameType::scrub, payload); }

void StreamWriter::send_alone(FrameType type, std::span<const std::byte> payload) {
  // They would be sent, and forgotten, with this frame.
  COLO_ASSERT(entries_.payload_bytes() == 0 && (!disk_entries_ || disk_entries_->payload_bytes() == 0));
  const Stopwatch stopwatch(send_ns_);
  digest_.add_payload(payload);
  const iovec piece = piece_of(payload);
  put_frame(type, {&piece, 1}, payload.size());
  send_put();
}

void StreamWriter::end_epoch(std::uint64_t pages) {
  const Stopwatch stopwatch(send_ns_);
  put_pages();
  put_disk();
  digest_.add_pages(pages);
  end_ = encode_end(digest_.summary());
  const iovec piece = piece_of(end_);
  put_frame(FrameType::end, {&piece, 1}, end_.size());
  send_put();
}

}  // namespace colo
