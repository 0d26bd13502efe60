// Accepts connections from peers on one TCP port and tells by their preface what they are for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "connection.h"

namespace colo {

// Every connection begins with a preface of 64 bytes (docs/protocol.md): bytes 0-7 "COLOCTL1", "COLOBLK1",
// "COLOHBT1" or "COLODOC1"; the rest belongs to whoever takes the connection over. With credentials, TLS
// begins before it. A connection that doesn't get through its handshake and send its preface within the time
// limit, or sends another, is closed; at most `pending_max` wait at once. When one more comes, the oldest of
// the host that has the most of them goes: nobody gets his in the way of another host's.
inline constexpr std::size_t kPrefaceBytes = 64;

class Acceptor {
 public:
  enum class Link { control, bulk, heartbeat, doctor };
  struct Events {
    // From the acceptor's thread. The connection's descriptor is non-blocking, TCP_NODELAY, CLOEXEC; `peer`
    // is "address:port".
    std::function<void(Link, Connection, std::string preface, std::string peer)> accepted;
    std::function<void(std::string peer, std::string reason)> refused;
  };

  // Listens on host:port (port 0: any). Throws ERR_COLO_LISTEN with the address in its text. Without
  // `credentials` connections are plain text.
  Acceptor(const std::string& host, std::uint16_t port, Events events,
           std::shared_ptr<const TlsCredentials> credentials = nullptr, unsigned preface_timeout_ms = 5000,
           unsigned pending_max = 16);
  ~Acceptor();

  std::uint16_t port() const;
  // Stops listening and closes what waits; no callback begins after it. Idempotent; not from two threads at
  // once, nor from a callback.
  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace colo
