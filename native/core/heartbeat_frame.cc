#include "heartbeat_frame.h"

#include <cstring>

#include "byte_order.h"
#include "error.h"

namespace colo {
namespace {

constexpr char kMagic[] = "CHBT";
constexpr char kPrefaceMagic[] = "COLOHBT1";
constexpr std::uint16_t kVersion = 1;

// Where each field begins.
enum At : std::size_t {
  kAtVersion = 4,
  kAtReserved = 6,
  kAtGeneration = 8,
  kAtSequence = 16,
  kAtSent = 24,
  kAtEcho = 32,
  kAtEchoAge = 40,
  kAtInterval = 44,
  kAtProgress = 48,
};

[[noreturn]] void refuse(const std::string& what) { throw Error("ERR_COLO_PEER", 0, "a heartbeat " + what); }

}  // namespace

std::array<std::byte, kHeartbeatBytes> encode_heartbeat(const HeartbeatFrame& frame) {
  std::array<std::byte, kHeartbeatBytes> bytes = {};
  std::memcpy(bytes.data(), kMagic, 4);
  store_big_endian(bytes.data() + kAtVersion, kVersion);
  store_big_endian(bytes.data() + kAtGeneration, frame.generation);
  store_big_endian(bytes.data() + kAtSequence, frame.sequence);
  store_big_endian(bytes.data() + kAtSent, frame.sent_us);
  store_big_endian(bytes.data() + kAtEcho, frame.echo_us);
  store_big_endian(bytes.data() + kAtEchoAge, frame.echo_age_us);
  store_big_endian(bytes.data() + kAtInterval, frame.interval_ms);
  store_big_endian(bytes.data() + kAtProgress, frame.progress);
  return bytes;
}

HeartbeatFrame parse_heartbeat(std::span<const std::byte, kHeartbeatBytes> bytes) {
  const std::byte* const at = bytes.data();
  if (std::memcmp(at, kMagic, 4) != 0) refuse("does not begin with \"CHBT\"");
  if (const auto version = load_big_endian<std::uint16_t>(at + kAtVersion); version != kVersion)
    refuse("of version " + std::to_string(version) + " came; this agent speaks version 1");
  if (load_big_endian<std::uint16_t>(at + kAtReserved) != 0) refuse("has reserved bytes that are not zero");
  HeartbeatFrame frame;
  frame.generation = load_big_endian<std::uint64_t>(at + kAtGeneration);
  frame.sequence = load_big_endian<std::uint64_t>(at + kAtSequence);
  frame.sent_us = load_big_endian<std::uint64_t>(at + kAtSent);
  frame.echo_us = load_big_endian<std::uint64_t>(at + kAtEcho);
  frame.echo_age_us = load_big_endian<std::uint32_t>(at + kAtEchoAge);
  frame.interval_ms = load_big_endian<std::uint32_t>(at + kAtInterval);
  frame.progress = load_big_endian<std::uint64_t>(at + kAtProgress);
  return frame;
}

std::array<std::byte, kHeartbeatPrefaceBytes> encode_heartbeat_preface(const std::string& token,
                                                                       std::uint64_t generation) {
  COLO_ASSERT(token.size() == kHeartbeatTokenBytes);
  std::array<std::byte, kHeartbeatPrefaceBytes> bytes = {};
  std::memcpy(bytes.data(), kPrefaceMagic, 8);
  std::memcpy(bytes.data() + 8, token.data(), token.size());
  store_big_endian(bytes.data() + 24, generation);
  return bytes;
}

}  // namespace colo
