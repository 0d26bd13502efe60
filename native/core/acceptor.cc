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
constexpr std::array<std::pair<std::string_view, Acceptor::Link>, 4> kMagics = {
    {{"COLOCTL1", Acceptor::Link::control},
     {"COLOBLK1", Acceptor::Link::bulk},
     {"COLOHBT1", Acceptor::Link::heartbeat},
     {"COLODOC1", Acceptor::Link::doctor}}};
constexpr auto kAcceptPause =
    std::chrono::milliseconds(100);  // after accept(2) failed: of descriptors or memory, say
constexpr int kBacklog = 64;

// kMagics.end() when it is none's beginning.
auto magic_begun_by(std::string_view preface) {
  return std::find_if(kMagics.begin(), kMagics.end(), [&](const auto& each) {
    return each.first.starts_with(preface.substr(0, kMagicBytes));
  });
}

struct Peer {
  std::string host = "unknown", name = "unknown";  // `name` is host:port
};

Peer describe(const sockaddr* address, socklen_t length) {
  char host[NI_MAXHOST], service[NI_MAXSERV];
  if (::getnameinfo(address, length, host, sizeof host, service, sizeof service,
                    NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
    return {};
  }
  const bool v6 = address->sa_family == AF_INET6;
  return {host, (v6 ? "[" + std::string(host) + "]:" : std::string(host) + ":") + service};
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

// accept(2), "Error handling": it is the connection's own error; the next may be well.
bool is_of_the_connection(int error) {
  constexpr std::array kErrors = {ECONNABORTED, EINTR,     EPROTO,       ENOPROTOOPT, ENETDOWN,
                                  ENETUNREACH,  EHOSTDOWN, EHOSTUNREACH, ENONET,      EOPNOTSUPP};
  return std::find(kErrors.begin(), kErrors.end(), error) != kErrors.end();
}

struct Pending {
  Connection connection;
  Peer peer;
  Clock::time_point deadline;
  bool spoken = false;  // its first byte has been looked at
  bool shaken = false;  // its TLS handshake has come to its end, or there is none
  std::string preface;
};

constexpr char kTlsRecord = 0x16;  // what a TLS client's first byte is
// A TLS alert ("protocol version"), for a peer that speaks plain text: its own log shall say why. And, for
// one that speaks TLS, what is no TLS at all.
constexpr std::string_view kTlsAlert("\x15\x03\x01\x00\x02\x02\x46", 7);
constexpr std::string_view kPlainAnswer = "COLO: no TLS here\n";

void send_once(int fd, std::string_view text) { ::send(fd, text.data(), text.size(), MSG_NOSIGNAL); }

// A close with something unread would reset the connection, and with it what we have said last. One read: who
// sends more than a handshake needs must not hold the thread up.
void end_politely(int fd) {
  std::array<char, 16384> unread;
  ::shutdown(fd, SHUT_WR);
  ::recv(fd, unread.data(), unread.size(), 0);
}

}  // namespace

struct Acceptor::State {
  Events events;
  std::shared_ptr<const TlsCredentials> credentials;
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
  void watch(int operation, int fd, void* token, std::uint32_t events = EPOLLIN);
  void accept_all();
  void make_room();
  void go_on(Pending& waiting);
  bool listen_to_first_byte(Pending& waiting);
  bool shake_hands(Pending& waiting);
  bool receive_preface(Pending& waiting);
  void hand_over(Pending& waiting);
  void refuse(const Pending& waiting, const std::string& reason);
  void forget(const Pending& waiting);
  void expire();
};

void Acceptor::State::watch(int operation, int fd, void* token, std::uint32_t wanted) {
  epoll_event event{.events = wanted, .data = {.ptr = token}};
  COLO_ASSERT(::epoll_ctl(epoll.get(), operation, fd, &event) == 0);
}

void Acceptor::State::forget(const Pending& waiting) {
  pending.remove_if([&](const Pending& each) { return &each == &waiting; });
}

void Acceptor::State::refuse(const Pending& waiting, const std::string& reason) {
  const std::string peer = waiting.peer.name;
  end_politely(waiting.connection.fd.get());
  forget(waiting);
  events.refused(peer, reason);
}

void Acceptor::State::make_room() {
  if (pending.size() < pending_max) return;
  const auto waiting_of = [this](const Pending& one) {
    return std::count_if(pending.begin(), pending.end(),
                         [&](const Pending& other) { return other.peer.host == one.peer.host; });
  };
  // The first of several with the most is the oldest.
  const auto victim =
      std::max_element(pending.begin(), pending.end(),
                       [&](const Pending& a, const Pending& b) { return waiting_of(a) < waiting_of(b); });
  refuse(*victim, "too many connections wait for their preface");
}

void Acceptor::State::accept_all() {
  for (;;) {
    sockaddr_storage address;
    socklen_t length = sizeof address;
    UniqueFd fd(::accept4(listener.get(), reinterpret_cast<sockaddr*>(&address), &length,
                          SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd) {
      if (is_of_the_connection(errno)) continue;
      if (errno == EAGAIN) return;
      // Descriptors, memory, or what nobody has thought of: the listener would wake the thread at once, and
      // what is wrong may pass when something else ends.
      watch(EPOLL_CTL_DEL, listener.get(), nullptr);
      accept_again = Clock::now() + kAcceptPause;
      return;
    }
    const int on = 1;
    ::setsockopt(fd.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    make_room();
    Pending& waiting = pending.emplace_back();
    waiting.connection.fd = std::move(fd);
    waiting.peer = describe(reinterpret_cast<const sockaddr*>(&address), length);
    waiting.deadline = Clock::now() + std::chrono::milliseconds(preface_timeout_ms);
    watch(EPOLL_CTL_ADD, waiting.connection.fd.get(), &waiting);
  }
}

// As far as the connection lets us without waiting. It may be gone afterwards.
void Acceptor::State::go_on(Pending& waiting) {
  try {
    if (!waiting.spoken && !listen_to_first_byte(waiting)) return;
    if (!waiting.shaken && !shake_hands(waiting)) return;
    while (waiting.preface.size() < kPrefaceBytes) {
      if (!receive_preface(waiting)) return;
    }
  } catch (const Error& error) {
    return refuse(waiting, error.what());
  }
  hand_over(waiting);
}

// Who speaks the other language is told so in his own, before TLS makes an error of it that says less.
bool Acceptor::State::listen_to_first_byte(Pending& waiting) {
  const int fd = waiting.connection.fd.get();
  char first = 0;
  const ssize_t got = ::recv(fd, &first, 1, MSG_PEEK);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (got <= 0) throw Error("ERR_COLO_PEER", 0, "the connection closed before its preface was whole");
  waiting.spoken = true;
  if (!credentials) {
    if (first == kTlsRecord) {
      send_once(fd, kPlainAnswer);
      throw Error("ERR_COLO_PEER", 0,
                  "the peer speaks TLS, and this agent was started with --insecure: start both the same way");
    }
    waiting.shaken = true;
    return true;
  }
  if (first != kTlsRecord) {
    send_once(fd, kTlsAlert);
    throw Error(
        "ERR_COLO_PEER", 0,
        "the peer doesn't speak TLS, without which nobody may talk to this agent (was it started with "
        "--insecure?)");
  }
  waiting.connection.tls = std::make_unique<TlsSession>(*credentials, fd, TlsSession::Side::server);
  return true;
}

bool Acceptor::State::shake_hands(Pending& waiting) {
  const short wanted = waiting.connection.tls->handshake();
  waiting.shaken = wanted == 0;
  watch(EPOLL_CTL_MOD, waiting.connection.fd.get(), &waiting, wanted == POLLOUT ? EPOLLOUT : EPOLLIN);
  return waiting.shaken;
}

// Reads not one byte more than the preface: what follows belongs to whoever takes the connection over. False
// when nothing more is there for now.
bool Acceptor::State::receive_preface(Pending& waiting) {
  std::array<char, kPrefaceBytes> buffer;
  const ssize_t got = waiting.connection.calls().recv(waiting.connection.fd.get(), buffer.data(),
                                                      kPrefaceBytes - waiting.preface.size(), 0);
  if (got < 0 && (errno == EAGAIN || errno == EINTR)) return false;
  if (got <= 0) throw Error("ERR_COLO_PEER", 0, "the connection closed before its preface was whole");
  waiting.preface.append(buffer.data(), static_cast<std::size_t>(got));
  if (magic_begun_by(waiting.preface) == kMagics.end())
    throw Error("ERR_COLO_PEER", 0, "the connection's preface is not colo-agent's");
  return true;
}

void Acceptor::State::hand_over(Pending& waiting) {
  const Link link = magic_begun_by(waiting.preface)->second;
  watch(EPOLL_CTL_DEL, waiting.connection.fd.get(), nullptr);
  Connection connection = std::move(waiting.connection);
  const std::string peer = std::move(waiting.peer.name), preface = std::move(waiting.preface);
  forget(waiting);
  events.accepted(link, std::move(connection), preface, peer);
}

void Acceptor::State::expire() {
  const auto now = Clock::now();
  while (!pending.empty() && pending.front().deadline <= now) {
    const char* const missing = pending.front().shaken || !credentials ? "preface" : "TLS handshake";
    refuse(pending.front(),
           "no " + std::string(missing) + " within " + std::to_string(preface_timeout_ms) + " ms");
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
        go_on(*static_cast<Pending*>(event.data.ptr));
      }
    }
    expire();
  }
}

Acceptor::Acceptor(const std::string& host, std::uint16_t port, Events events,
                   std::shared_ptr<const TlsCredentials> credentials, unsigned preface_timeout_ms,
                   unsigned pending_max)
    : state_(std::make_unique<State>()) {
  COLO_ASSERT(pending_max > 0);
  State& state = *state_;
  state.events = std::move(events);
  state.credentials = std::move(credentials);
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
