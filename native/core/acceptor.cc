#include "acceptor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <list>
#include <optional>
#include <string_view>
#include <thread>
#include <utility>

#include "error.h"
#include "unique_fd.h"

namespace colo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMagicBytes = 8;
constexpr std::array<std::pair<std::string_view, Acceptor::Link>, 3> kMagics = {
    {{"COLOCTL1", Acceptor::Link::control},
     {"COLOBLK1", Acceptor::Link::bulk},
     {"COLOHBT1", Acceptor::Link::heartbeat}}};
constexpr auto kAcceptPause =
    std::chrono::milliseconds(100);  // after accept(2) ran out of descriptors or memory
constexpr int kBacklog = 64;

std::string describe(const sockaddr* address, socklen_t length) {
  char host[NI_MAXHOST], service[NI_MAXSERV];
  if (::getnameinfo(address, length, host, sizeof host, service, sizeof service,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return "unknown";
  }
  const bool v6 = address->sa_family == AF_INET6;
  return (v6 ? "[" + std::string(host) + "]:" : std::string(host) + ":") + service;
}

UniqueFd listen_on(const addrinfo& address) {
  UniqueFd fd(::socket(address.ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fd;
  const int on = 1;
  // A restarted agent must be able to listen while connections of its predecessor are in TIME_WAIT.
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (::bind(fd.get(), address.ai_addr, address.ai_addrlen) < 0 || ::listen(fd.get(), kBacklog) < 0) {
    const int saved = errno;
    fd.reset();
    errno = saved;
  }
  return fd;
}

UniqueFd listen_on(const std::string& host, std::uint16_t port) {
  const std::string where = host + ":" + std::to_string(port);
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int status = ::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found);
  if (status != 0) {
    throw Error("ERR_COLO_LISTEN", status == EAI_SYSTEM ? errno : 0,
                "can't listen on " + where + ": " + ::gai_strerror(status));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> addresses(found, &::freeaddrinfo);
  for (const addrinfo* each = found; each != nullptr; each = each->ai_next) {
    if (UniqueFd fd = listen_on(*each)) return fd;
  }
  throw_errno("ERR_COLO_LISTEN", "can't listen on " + where);
}

struct Pending {
  UniqueFd fd;
  std::string peer;
  std::string preface;
  Clock::time_point deadline;
};

}  // namespace

struct Acceptor::State {
  Events events;
  unsigned preface_timeout_ms;
  unsigned pending_max;
  UniqueFd listener, end, epoll;
  std::uint16_t port = 0;
  std::thread thread;

  // The thread's own, oldest first. A list, so that epoll can keep addresses of its entries.
  std::list<Pending> pending;
  std::optional<Clock::time_point> accept_again;

  void run();
  int wait_ms() const;
  void watch(int operation, int fd, void* token);
  void accept_all();
  void receive(Pending& connection);
  void refuse(const Pending& connection, const std::string& reason);
  void forget(const Pending& connection);
  void expire();
};

void Acceptor::State::watch(int operation, int fd, void* token) {
  epoll_event event{.events = EPOLLIN, .data = {.ptr = token}};
  COLO_ASSERT(::epoll_ctl(epoll.get(), operation, fd, &event) == 0);
}

void Acceptor::State::forget(const Pending& connection) {
  pending.remove_if([&](const Pending& each) { return &each == &connection; });
}

void Acceptor::State::refuse(const Pending& connection, const std::string& reason) {
  const std::string peer = connection.peer;
  forget(connection);
  events.refused(peer, reason);
}

void Acceptor::State::accept_all() {
  for (;;) {
    sockaddr_storage address;
    socklen_t length = sizeof address;
    UniqueFd fd(::accept4(listener.get(), reinterpret_cast<sockaddr*>(&address), &length,
                          SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        // The connection stays in the backlog and would wake the thread at once; descriptors come back when
        // something else ends.
        watch(EPOLL_CTL_DEL, listener.get(), nullptr);
        accept_again = Clock::now() + kAcceptPause;
        return;
      }
      if (errno == EAGAIN) return;
      continue;  // this connection is lost already (accept(2), "Error handling"); the next may be well
    }
    const int on = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (pending.size() >= pending_max) {
      refuse(pending.front(), "too many connections wait for their preface");
    }
    pending.push_back({std::move(fd),
                       describe(reinterpret_cast<const sockaddr*>(&address), length),
                       {},
                       Clock::now() + std::chrono::milliseconds(preface_timeout_ms)});
    watch(EPOLL_CTL_ADD, pending.back().fd.get(), &pending.back());
  }
}

// Reads not one byte more than the preface: what follows belongs to whoever takes the connection over.
void Acceptor::State::receive(Pending& connection) {
  std::array<char, kPrefaceBytes> buffer;
  const ssize_t got =
      ::recv(connection.fd.get(), buffer.data(), kPrefaceBytes - connection.preface.size(), 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (got <= 0) return refuse(connection, "the connection closed before its preface was whole");
  connection.preface.append(buffer.data(), static_cast<std::size_t>(got));

  const std::string_view magic = std::string_view(connection.preface).substr(0, kMagicBytes);
  const auto* const known = std::find_if(kMagics.begin(), kMagics.end(),
                                         [&](const auto& each) { return each.first.starts_with(magic); });
  if (known == kMagics.end()) return refuse(connection, "the connection's preface is not colo-agent's");
  if (connection.preface.size() < kPrefaceBytes) return;
  const Link link = known->second;
  watch(EPOLL_CTL_DEL, connection.fd.get(), nullptr);
  const int fd = connection.fd.release();
  const std::string peer = std::move(connection.peer), preface = std::move(connection.preface);
  forget(connection);
  events.accepted(link, fd, preface, peer);
}

void Acceptor::State::expire() {
  const auto now = Clock::now();
  while (!pending.empty() && pending.front().deadline <= now) {
    refuse(pending.front(), "no preface within " + std::to_string(preface_timeout_ms) + " ms");
  }
  if (accept_again && *accept_again <= now) {
    accept_again.reset();
    watch(EPOLL_CTL_ADD, listener.get(), &listener);
  }
}

int Acceptor::State::wait_ms() const {
  auto next = Clock::time_point::max();
  if (!pending.empty()) next = pending.front().deadline;
  if (accept_again) next = std::min(next, *accept_again);
  if (next == Clock::time_point::max()) return -1;
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(next - Clock::now()).count();
  return left < 0 ? 0 : static_cast<int>(left);
}

void Acceptor::State::run() {
  for (;;) {
    // One event at a time: handling one may forget a connection that another event of the same batch points
    // to.
    epoll_event event;
    const int count = ::epoll_wait(epoll.get(), &event, 1, wait_ms());
    COLO_ASSERT(count >= 0 || errno == EINTR);
    if (count == 1) {
      if (event.data.ptr == &end) return;
      if (event.data.ptr == &listener) {
        accept_all();
      } else {
        receive(*static_cast<Pending*>(event.data.ptr));
      }
    }
    expire();
  }
}

Acceptor::Acceptor(const std::string& host, std::uint16_t port, Events events, unsigned preface_timeout_ms,
                   unsigned pending_max)
    : state_(std::make_unique<State>()) {
  COLO_ASSERT(pending_max > 0);
  State& state = *state_;
  state.events = std::move(events);
  state.preface_timeout_ms = preface_timeout_ms;
  state.pending_max = pending_max;
  state.listener = listen_on(host, port);
  sockaddr_storage address;
  socklen_t length = sizeof address;
  if (::getsockname(state.listener.get(), reinterpret_cast<sockaddr*>(&address), &length) < 0) {
    throw_errno("ERR_COLO_LISTEN", "getsockname");
  }
  state.port = ntohs(address.ss_family == AF_INET6 ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                                                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
  state.end.reset(::eventfd(0, EFD_CLOEXEC));
  state.epoll.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!state.end || !state.epoll) throw_errno("ERR_COLO_LISTEN", "epoll");
  state.watch(EPOLL_CTL_ADD, state.end.get(), &state.end);
  state.watch(EPOLL_CTL_ADD, state.listener.get(), &state.listener);
  state.thread = std::thread([&state] { state.run(); });
}

Acceptor::~Acceptor() { close(); }

std::uint16_t Acceptor::port() const { return state_->port; }

void Acceptor::close() {
  State& state = *state_;
  if (!state.thread.joinable()) return;
  const std::uint64_t one = 1;
  COLO_ASSERT(::write(state.end.get(), &one, sizeof one) == sizeof one);
  state.thread.join();
  state.pending.clear();
  state.listener.reset();
}

}  // namespace colo
