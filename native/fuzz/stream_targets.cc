// What a peer sends, decoder by decoder. bulk_receiver_target.cc has them all together, behind a socket.
#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

#include "../core/checkpoint_stream.h"
#include "../core/disk_stream.h"
#include "../core/error.h"
#include "../core/page_delta.h"
#include "naive_decoders.h"
#include "targets.h"

namespace colo::fuzz {
namespace {

bool same(std::span<const std::byte> a, std::span<const std::byte> b) { return std::ranges::equal(a, b); }

bool lies_in(std::span<const std::byte> whole, const std::byte* at, std::uint64_t length) {
  return at >= whole.data() && at <= whole.data() + whole.size() &&
         length <= static_cast<std::size_t>(whole.data() + whole.size() - at);
}

// A socket from which a fixed text comes, then its end. What is sent is dropped.
class ReplayCalls : public SocketCalls {
 public:
  explicit ReplayCalls(Input input) : left_(input) {}

  ssize_t sendmsg(int, const msghdr* message, int) override {
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < message->msg_iovlen; ++i) bytes += message->msg_iov[i].iov_len;
    return static_cast<ssize_t>(bytes);
  }
  ssize_t recv(int, void* into, std::size_t length, int) override {
    const std::size_t piece = std::min(length, left_.size());
    if (piece > 0) std::memcpy(into, left_.data(), piece);
    left_ = left_.subspan(piece);
    return static_cast<ssize_t>(piece);
  }

 private:
  Input left_;
};

constexpr std::uint64_t kGeneration = 7;
constexpr std::uint64_t kPagesOfBlocks[] = {16, 1};
constexpr std::uint64_t kDiskSizes[] = {8 * kDiskBlockBytes + 512, 2 * kDiskBlockBytes};

}  // namespace

Verdict bulk_preface(Input input) {
  try {
    COLO_ASSERT(same(encode_preface(parse_preface(input)), input));
    return Verdict::accepted;
  } catch (const Error&) {
    return Verdict::refused;
  }
}

// The first byte says whether deltas are allowed; the payload of a PAGES frame follows.
Verdict page_entries(Input input) {
  if (input.empty()) return Verdict::refused;
  const bool deltas_allowed = (input[0] & std::byte{1}) != std::byte{0};
  const Input payload = input.subspan(1);
  std::uint64_t announced = 0;
  try {
    announced = validate_entries(payload, kPagesOfBlocks, deltas_allowed);
  } catch (const Error&) {
    return Verdict::refused;
  }
  std::array<Bytes, 2> decoded, expected;
  for (std::size_t i = 0; i < decoded.size(); ++i) {
    decoded[i].assign(kPagesOfBlocks[i] * kPageSize, std::byte{0x55});
    expected[i] = decoded[i];
  }
  std::uint64_t touched_bytes = 0;
  decode_entries(payload, {[&](std::uint16_t block, MemoryWrite write) {
                             COLO_ASSERT(lies_in(payload, write.data, write.length));
                             Input from(write.data, write.length);
                             copy_into(decoded[block], write.offset, from, write.length);
                             touched_bytes += write.length;
                           },
                           [&](std::uint16_t block, PageRun run) {
                             clear(decoded[block], run.first * kPageSize, run.count * kPageSize);
                             touched_bytes += run.count * kPageSize;
                           }});
  COLO_ASSERT(touched_bytes <= announced * kPageSize);
  apply_pages_naively(payload, expected);
  COLO_ASSERT(decoded == expected);
  return Verdict::accepted;
}

namespace {

Verdict disk_writes(Input payload) {
  validate_disk_entries(payload, kDiskSizes);
  std::array<Bytes, 2> decoded = {Bytes(kDiskSizes[0]), Bytes(kDiskSizes[1])}, expected = decoded;
  for_each_disk_entry(payload, [&](std::uint16_t disk, const DiskWrite& write) {
    if (write.data == nullptr) return clear(decoded[disk], write.offset, write.length);
    COLO_ASSERT(lies_in(payload, write.data, write.length));
    Input from(write.data, write.length);
    copy_into(decoded[disk], write.offset, from, write.length);
  });
  apply_disk_writes_naively(payload, expected);
  COLO_ASSERT(decoded == expected);
  return Verdict::accepted;
}

Verdict disk_hashes(Input payload) {
  const DiskHashesHeader header = validate_disk_hashes(payload, kDiskSizes);
  COLO_ASSERT(hashes_of(payload).size() == header.count);
  COLO_ASSERT(header.first_block + header.count <= disk_blocks(kDiskSizes[header.disk]));
  return Verdict::accepted;
}

}  // namespace

// The first byte says which payload follows: that of a DISK frame or of a DISK_HASHES frame.
Verdict disk_payloads(Input input) {
  if (input.empty()) return Verdict::refused;
  try {
    return (input[0] & std::byte{1}) == std::byte{0} ? disk_writes(input.subspan(1))
                                                     : disk_hashes(input.subspan(1));
  } catch (const Error&) {
    return Verdict::refused;
  }
}

// What the primary receives: the answer to a question about as many blocks as the first two bytes say.
Verdict disk_differs(Input input) {
  if (input.size() < 2) return Verdict::refused;
  std::uint16_t asked;
  std::memcpy(&asked, input.data(), sizeof asked);
  const std::uint32_t count = asked % kDiskHashesMax + 1;
  ReplayCalls calls(input.subspan(2));
  StreamWriter writer(calls, -1, kGeneration);
  writer.begin_epoch(0);
  std::vector<std::byte> differs(differs_bytes(count));
  try {
    writer.receive_disk_differs(count, differs);
    return Verdict::accepted;
  } catch (const Error&) {
    return Verdict::refused;
  }
}

}  // namespace colo::fuzz
