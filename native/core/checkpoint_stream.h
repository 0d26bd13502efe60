// The bulk stream (docs/protocol.md, "Preface" and "Bulk frames"): its headers, its checksum, and the
// sender's end of one connection.
#pragma once

#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "disk_stream.h"
#include "page_delta.h"
#include "scrub_stream.h"
#include "socket_io.h"

namespace colo {

inline constexpr std::size_t kBulkPrefaceBytes = 64;
inline constexpr std::size_t kTokenBytes = 16;
inline constexpr unsigned kConnectionsMax = 16;

struct BulkPreface {
  std::string token;  // kTokenBytes long
  std::uint64_t generation = 0;
  std::uint16_t index = 0;
  std::uint16_t connections = 0;
};
std::array<std::byte, kBulkPrefaceBytes> encode_preface(const BulkPreface& preface);
// Throws ERR_COLO_PEER for anything that encode_preface() doesn't make.
BulkPreface parse_preface(std::span<const std::byte> bytes);

enum class FrameType : std::uint16_t {
  pages = 1,
  vmstate = 2,
  end = 3,
  disk = 4,          // disk_stream.h has the payloads of these three
  disk_hashes = 5,   // not counted in END
  disk_differs = 6,  // from the secondary; not counted in END
  scrub = 7,         // see scrub_stream.h
};

inline constexpr std::size_t kFrameHeaderBytes = 32;
inline constexpr std::uint32_t kPagesBytesMax = 1u << 20;
inline constexpr std::uint32_t kVmstateBytesMax = 64u << 20;
inline constexpr std::uint32_t kEndBytes = 32;
inline constexpr std::uint32_t kDiskBytesMax = 1u << 20;

struct FrameHeader {
  FrameType type = FrameType::pages;
  std::uint64_t generation = 0;
  std::uint64_t epoch = 0;
  std::uint32_t length = 0;
};
std::array<std::byte, kFrameHeaderBytes> encode_frame_header(const FrameHeader& header);
// Throws ERR_COLO_STREAM for a wrong magic, version, type, reserved field, or a length that the type doesn't
// allow: nothing needs to be allocated before it has passed.
FrameHeader parse_frame_header(std::span<const std::byte, kFrameHeaderBytes> bytes);

// What END says of a connection's part of an epoch.
struct EpochSummary {
  std::uint64_t pages = 0;
  std::uint64_t payload_bytes = 0;
  std::uint64_t hash = 0;  // XXH3-64 of the payloads in order

  bool operator==(const EpochSummary&) const = default;
};
std::array<std::byte, kEndBytes> encode_end(const EpochSummary& summary);
// Throws ERR_COLO_STREAM when the reserved field isn't zero.
EpochSummary parse_end(std::span<const std::byte, kEndBytes> bytes);

// Gathers the summary while an epoch passes by, on either side.
class EpochDigest {
 public:
  EpochDigest();
  ~EpochDigest();

  void reset();
  void add_pages(std::uint64_t pages) { pages_ += pages; }
  void add_payload(std::span<const std::byte> bytes);
  EpochSummary summary() const;

 private:
  struct Hash;
  std::unique_ptr<Hash> hash_;
  std::uint64_t pages_ = 0, payload_bytes_ = 0;
};

// The sender's end of one bulk connection, used by one thread at a time. What it throws is ERR_COLO_LINK
// where nothing else is said; the connection is of no use then. Allocates in the constructor, and for the
// first disk write.
class StreamWriter {
 public:
  // The socket stays the caller's.
  StreamWriter(SocketCalls& calls, int fd, std::uint64_t generation);

  void begin_epoch(std::uint64_t epoch);

  // Where the next page goes; sends what is there when it is full. The pages it refers to must stay until
  // send_gathered() or end_epoch().
  EntryWriter& entries();
  // What the guest wrote to a disk, or what a block of it holds; sends what is there when there is enough of
  // it. The data must stay until send_gathered() or end_epoch().
  void add_disk_write(std::uint16_t disk, const DiskWrite& write);
  // Sends the pages and the disk writes that wait.
  void send_gathered();
  void send_vmstate(std::span<const std::byte> bytes);
  void send_scrub(std::span<const std::byte> payload);  // of encode_scrub()
  // At most kDiskHashesMax hashes (asserted) of blocks that follow one another.
  void send_disk_hashes(std::uint16_t disk, std::uint64_t first_block, std::span<const BlockHash> hashes);
  // Waits for the answer to the oldest question that has none yet, about `count` blocks; `differs` has
  // differs_bytes(count) bytes (asserted). Throws ERR_COLO_STREAM for anything else that comes.
  void receive_disk_differs(std::uint32_t count, std::span<std::byte> differs);

  // Sends what waits and END; `pages` is how many went into entries() in this epoch.
  void end_epoch(std::uint64_t pages);

  // Headers and payloads since begin_epoch(), and the time spent in hashing and sending them.
  std::uint64_t wire_bytes() const { return wire_bytes_; }
  std::uint64_t send_ns() const { return send_ns_; }

 private:
  void put_frame(FrameType type, std::span<const iovec> payload, std::size_t length);
  void put(std::span<const std::byte> bytes);
  void put_pages();
  void put_disk();
  void send_alone(FrameType type, std::span<const std::byte> payload);
  void send_put();

  SocketCalls& calls_;
  int fd_;
  std::uint64_t generation_, epoch_ = 0;
  EntryWriter entries_;
  std::optional<DiskEntryWriter> disk_entries_;  // from the first disk write on
  EpochDigest digest_;
  // At most three frames wait to be sent together: the last pages, the last disk writes and END.
  std::array<std::array<std::byte, kFrameHeaderBytes>, 3> headers_;
  std::size_t headers_used_ = 0;
  std::array<std::byte, kEndBytes> end_;
  std::vector<iovec> pieces_;
  std::uint64_t wire_bytes_ = 0, send_ns_ = 0;
};

// The receiver's end: reads the next frame's header, and holds `generation` against it. The payload follows
// on the socket.
FrameHeader receive_frame_header(SocketCalls& calls, int fd, std::uint64_t generation);

}  // namespace colo
