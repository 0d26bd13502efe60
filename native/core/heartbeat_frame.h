// A heartbeat's bytes (docs/protocol.md, "Preface" and "Heartbeats").
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace colo {

inline constexpr std::size_t kHeartbeatBytes = 56;
inline constexpr std::size_t kHeartbeatPrefaceBytes = 64;
inline constexpr std::size_t kHeartbeatTokenBytes = 16;

struct HeartbeatFrame {
  std::uint64_t generation = 0;
  std::uint64_t sequence = 0;     // from 1, one more each time
  std::uint64_t sent_us = 0;      // on the sender's monotonic clock
  std::uint64_t echo_us = 0;      // `sent_us` of the newest frame that the sender has got; 0: none yet
  std::uint32_t echo_age_us = 0;  // how long ago that came
  std::uint32_t interval_ms = 0;  // between the sender's heartbeats
  std::uint64_t progress = 0;     // grows as long as the sender's event loop runs
};

std::array<std::byte, kHeartbeatBytes> encode_heartbeat(const HeartbeatFrame& frame);
// Throws ERR_COLO_PEER for anything that encode_heartbeat() doesn't make.
HeartbeatFrame parse_heartbeat(std::span<const std::byte, kHeartbeatBytes> bytes);

// The first bytes of the connection; `token` is kHeartbeatTokenBytes long (asserted).
std::array<std::byte, kHeartbeatPrefaceBytes> encode_heartbeat_preface(const std::string& token,
                                                                       std::uint64_t generation);

}  // namespace colo
