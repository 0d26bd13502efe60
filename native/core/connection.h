// One connection to a peer, encrypted or not.
#pragma once

#include <memory>
#include <utility>

#include "tls_session.h"
#include "unique_fd.h"

namespace colo {

struct Connection {
  Connection() = default;
  explicit Connection(UniqueFd socket) : fd(std::move(socket)) {}

  // What sends and receives on `fd`; lives as long as the connection isn't moved from.
  SocketCalls& calls() const { return tls ? *tls : system_socket_calls(); }

  UniqueFd fd;
  std::unique_ptr<TlsSession> tls;  // null: plain text
};

}  // namespace colo
