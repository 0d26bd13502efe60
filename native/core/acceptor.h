// Accepts connections from peers on one TCP port and tells by their preface what they are for.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

namespace colo {

// Every connection begins with a preface of 64 bytes (docs/protocol.md): bytes 0-7 "COLOCTL1", "COLOBLK1" or
// "COLOHBT1"; the rest belongs to whoever takes the connection over. A connection that doesn't send its
// preface within the time limit, or sends another, is closed; at most `pending_max` wait at once, the oldest
// goes first.
inline constexpr std::size_t kPrefaceBytes = 64;

class Acceptor {
 public:
  enum class Link { control, bulk, heartbeat };
  struct Events {
    // From the acceptor's thread. The descriptor (non-blocking, TCP_NODELAY, CLOEXEC) belongs to the
    // receiver; `peer` is "address:port".
    std::function<void(Link, int fd, std::string preface, std::string peer)> accepted;
    std::function<void(std::string peer, std::string reason)> refused;
  };

  // Listens on host:port (port 0: any). Throws ERR_COLO_LISTEN with the address in its text.
  Acceptor(const std::string& host, std::uint16_t port, Events events, unsigned preface_timeout_ms = 5000,
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
