// Heartbeats with the peer's agent, on a connection and a thread of their own: a stalled event loop neither
// hides the peer's death nor fakes it.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "connection.h"
#include "heartbeat_judge.h"
#include "heartbeat_samples.h"

namespace colo {

// A peer that beats less often than so many times in our time-out is refused: one delayed packet would kill
// it.
inline constexpr int kHeartbeatsInTimeoutMin = 3;

struct HeartbeatStats {
  std::uint64_t sent = 0, received = 0;
  HeartbeatQuantiles rtt_us;
  HeartbeatQuantiles gap_us;  // between two heartbeats of the peer, as they came here
  bool real_time = false;     // the kernel lets the thread run before ordinary ones
};

// What the kernel gives the thread for a host that is busy, or short of memory. An errno each; 0: given.
struct HeartbeatPrivileges {
  int real_time_errno = 0;      // to run before ordinary threads
  int locked_memory_errno = 0;  // its stack and state stay in memory; what OpenSSL has isn't among it
};

class Heartbeat {
 public:
  // Called once at most, from the thread, after which the peer hears nothing more from here; the connection
  // ends with the object.
  using OnVerdict = std::function<void(const HeartbeatVerdict&)>;
  // Called once, from the thread, before its first heartbeat; null: nobody wants to know.
  using OnPrivileges = std::function<void(const HeartbeatPrivileges&)>;

  struct Target {
    std::string host;
    std::uint16_t port = 0;
    std::string token;                                            // kHeartbeatTokenBytes long (asserted)
    std::shared_ptr<const TlsCredentials> credentials = nullptr;  // null: plain text
  };

  // The primary's end: connects in the thread, for which the peer gets five seconds, and for a TLS handshake
  // as much again. Failing that is a verdict, `closed`, without any grace.
  Heartbeat(const HeartbeatLimits& limits, std::uint64_t generation, Target target, OnVerdict on_verdict,
            OnPrivileges on_privileges = nullptr);
  // The secondary's end: a connection on a non-blocking socket, whose handshake is done and whose preface has
  // been read.
  Heartbeat(const HeartbeatLimits& limits, std::uint64_t generation, Connection accepted,
            OnVerdict on_verdict, OnPrivileges on_privileges = nullptr);
  ~Heartbeat();  // no call begins after it; not from the callback

  // To be called again and again by what the peer is to believe in. From any thread, as is stats(); neither
  // holds the heartbeats up.
  void progress();
  HeartbeatStats stats() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace colo
