#include "link_sockets.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "error.h"

namespace colo {
namespace {

Error cut_error() { return {"ERR_COLO_LINK", 0, "the bulk connections were cut"}; }

using Addresses = std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)>;

Addresses resolve(const std::string& host, std::uint16_t port) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int status = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (status != 0) throw Error("ERR_COLO_LINK", 0, "resolving " + host + ": " + ::gai_strerror(status));
  return {found, &::freeaddrinfo};
}

// Waits for the end of a connect(2) in progress. Returns 0 or its errno.
int wait_until_connected(int fd, int timeout_ms) {
  pollfd waited = {fd, POLLOUT, 0};
  int ready = 0;
  do {
    ready = ::poll(&waited, 1, timeout_ms);
  } while (ready < 0 && errno == EINTR);
  if (ready == 0) return ETIMEDOUT;
  int failure = 0;
  socklen_t length = sizeof failure;
  if (ready < 0 || ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &failure, &length) != 0) return errno;
  // A cut ends the attempt, too, without an error of its own.
  sockaddr_storage peer = {};
  length = sizeof peer;
  if (failure == 0 && ::getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &length) != 0) return errno;
  return failure;
}

void begin_tls(Connection& connection, const TlsCredentials& credentials, int timeout_ms) {
  connection.tls = std::make_unique<TlsSession>(credentials, connection.fd.get(), TlsSession::Side::client);
  connection.tls->handshake_within(timeout_ms);
}

}  // namespace

// nullptr, with errno, when the attempt fails at once.
Connection* LinkSockets::begin_connect(const addrinfo& address) {
  UniqueFd fd(::socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int on = 1;
  if (!fd || ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 ||
      ::setsockopt(fd.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &stall_timeout_ms_, sizeof stall_timeout_ms_) !=
          0)
    return nullptr;
  // Together with the look at `cut_`, since shutdown(2) has no effect on a socket that hasn't begun to
  // connect.
  const std::lock_guard lock(mutex_);
  if (cut_) throw cut_error();
  if (::connect(fd.get(), address.ai_addr, address.ai_addrlen) != 0 && errno != EINPROGRESS) return nullptr;
  return &connections_.emplace_back(std::move(fd));
}

Connection& LinkSockets::connect(const std::string& host, std::uint16_t port, int timeout_ms,
                                 const TlsCredentials* credentials) {
  const Addresses addresses = resolve(host, port);
  int failure = 0;
  for (const addrinfo* address = addresses.get(); address != nullptr; address = address->ai_next) {
    Connection* const connection = begin_connect(*address);
    failure = connection == nullptr ? errno : wait_until_connected(connection->fd.get(), timeout_ms);
    if (failure != 0) continue;
    // Not with the next address when this one fails: who isn't believed here isn't more so there.
    if (credentials != nullptr) begin_tls(*connection, *credentials, timeout_ms);
    return *connection;
  }
  throw Error("ERR_COLO_LINK", failure,
              "connecting to " + host + ":" + std::to_string(port) + ": " + std::strerror(failure));
}

Connection LinkSockets::release(Connection& connection) {
  const std::lock_guard lock(mutex_);
  return std::move(connection);
}

void LinkSockets::cut() {
  {
    const std::lock_guard lock(mutex_);
    cut_ = true;
    for (const Connection& each : connections_) ::shutdown(each.fd.get(), SHUT_RDWR);
  }
  cut_changed_.notify_all();
}

void LinkSockets::sleep_until(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  if (cut_changed_.wait_until(lock, deadline, [this] { return cut_; })) throw cut_error();
}

}  // namespace colo
