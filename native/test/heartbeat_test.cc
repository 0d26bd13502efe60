#include "../core/heartbeat.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <future>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "../core/acceptor.h"
#include "../core/heartbeat_frame.h"
#include "../core/link_sockets.h"
#include "child_process.h"
#include "primary_harness.h"
#include "tls_harness.h"

namespace colo {
namespace {

using Kind = HeartbeatVerdict::Kind;
using std::chrono::milliseconds;
using testing::ChildProcess;
using testing::PairedHosts;
using testing::wait_until;

constexpr std::uint64_t kGeneration = 7;
constexpr char kToken[] = "0123456789abcdef";
// Long on any machine: what a test doesn't provoke must not happen.
constexpr auto kLong = std::chrono::minutes(2);
constexpr HeartbeatLimits kPatient = {milliseconds(10), kLong, kLong, kLong, kLong};

struct Ends {
  UniqueFd ours, peers;

  Ends() {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) std::abort();
    ours.reset(fds[0]);
    peers.reset(fds[1]);
  }
};

// A heartbeat and its verdict.
class Watched {
 public:
  Watched(const HeartbeatLimits& limits, UniqueFd socket) : Watched(limits, Connection(std::move(socket))) {}
  Watched(const HeartbeatLimits& limits, Connection connection)
      : heartbeat_(std::in_place, limits, kGeneration, std::move(connection), callback()) {}
  Watched(const HeartbeatLimits& limits, Heartbeat::Target target)
      : heartbeat_(std::in_place, limits, kGeneration, std::move(target), callback()) {}

  Heartbeat& operator*() { return *heartbeat_; }
  Heartbeat* operator->() { return &*heartbeat_; }
  void end() { heartbeat_.reset(); }
  bool silent_so_far() const { return told_.wait_for(milliseconds(0)) != std::future_status::ready; }

  HeartbeatVerdict verdict() {
    if (told_.wait_for(std::chrono::minutes(1)) != std::future_status::ready) {
      ADD_FAILURE() << "no verdict";
      return {};
    }
    return told_.get();
  }

 private:
  Heartbeat::OnVerdict callback() {
    return [this](const HeartbeatVerdict& verdict) { promise_.set_value(verdict); };
  }

  std::promise<HeartbeatVerdict> promise_;
  std::future<HeartbeatVerdict> told_ = promise_.get_future();
  std::optional<Heartbeat> heartbeat_;
};

HeartbeatLimits with(void (*change)(HeartbeatLimits&)) {
  HeartbeatLimits limits = kPatient;
  change(limits);
  return limits;
}

void send_frame(const UniqueFd& socket, const HeartbeatFrame& frame) {
  const auto bytes = encode_heartbeat(frame);
  ASSERT_EQ(::send(socket.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(bytes.size()));
}

Heartbeat::Target target_of(std::uint16_t port, std::shared_ptr<const TlsCredentials> credentials) {
  return {"127.0.0.1", port, kToken, std::move(credentials)};
}

TEST(Heartbeat, TwoEndsHearEachOther) {
  Ends ends;
  Watched one(kPatient, std::move(ends.ours)), other(kPatient, std::move(ends.peers));
  EXPECT_TRUE(wait_until([&] { return one->stats().received >= 20 && other->stats().received >= 20; }));
  const HeartbeatStats stats = one->stats();
  EXPECT_GE(stats.sent, 20u);
  EXPECT_GT(stats.gap_us.max, 0u);  // the least may be 0: two that were read at once
  EXPECT_LE(stats.gap_us.p50, stats.gap_us.p99);
  EXPECT_LE(stats.gap_us.p99, stats.gap_us.max);
  EXPECT_LE(stats.rtt_us.min, stats.rtt_us.max);
  EXPECT_GT(stats.rtt_us.max, 0u);
  EXPECT_TRUE(one.silent_so_far());
}

TEST(Heartbeat, ConnectsAndSaysWhoItIs) {
  UniqueFd listener(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);

  Watched primary(kPatient, target_of(ntohs(address.sin_port), nullptr));
  UniqueFd accepted(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  ASSERT_TRUE(accepted);
  std::array<std::byte, kHeartbeatPrefaceBytes> preface;
  ASSERT_EQ(::recv(accepted.get(), preface.data(), preface.size(), MSG_WAITALL),
            static_cast<ssize_t>(preface.size()));
  EXPECT_EQ(preface, encode_heartbeat_preface(kToken, kGeneration));
  Watched secondary(kPatient, std::move(accepted));
  EXPECT_TRUE(wait_until([&] { return primary->stats().received > 1 && secondary->stats().received > 1; }));
}

TEST(Heartbeat, APeerThatCannotBeReachedIsTold) {
  UniqueFd bound(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));  // never listens
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof address;
  ASSERT_EQ(::bind(bound.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::getsockname(bound.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  Watched primary(kPatient, target_of(ntohs(address.sin_port), nullptr));
  const HeartbeatVerdict verdict = primary.verdict();
  EXPECT_EQ(verdict.kind, Kind::closed);
  EXPECT_NE(verdict.reason.find("Connection refused"), std::string::npos) << verdict.reason;
}

TEST(Heartbeat, SilenceIsNoticed) {
  Ends ends;
  send_frame(ends.peers, {kGeneration, 1, 1, 0, 0, 10, 1});
  Watched watched(with([](HeartbeatLimits& limits) { limits.timeout = milliseconds(100); }),
                  std::move(ends.ours));
  EXPECT_EQ(watched.verdict().kind, Kind::silent);
}

TEST(Heartbeat, ANeverHeardPeerIsNoticed) {
  Ends ends;
  Watched watched(
      with([](HeartbeatLimits& limits) { limits.timeout = limits.first_timeout = milliseconds(100); }),
      std::move(ends.ours));
  EXPECT_EQ(watched.verdict().kind, Kind::silent);
}

TEST(Heartbeat, AnEndedConnectionIsNoticed) {
  Ends ends;
  Watched watched(with([](HeartbeatLimits& limits) { limits.closed_grace = milliseconds(1); }),
                  std::move(ends.ours));
  ASSERT_TRUE(wait_until([&] { return watched->stats().sent > 1; }));
  ends.peers.reset();
  EXPECT_EQ(watched.verdict().kind, Kind::closed);
}

TEST(Heartbeat, ConnectionAndObjectThatEndTogetherTellNothing) {
  Ends ends;
  Watched watched(kPatient, std::move(ends.ours));
  ASSERT_TRUE(wait_until([&] { return watched->stats().sent > 1; }));
  ends.peers.reset();
  watched.end();
  EXPECT_TRUE(watched.silent_so_far());
}

TEST(Heartbeat, AStandingEventLoopIsNoticedAndARunningOneIsNot) {
  Ends ends;
  Watched peer(kPatient, std::move(ends.peers));  // whose owner calls progress()
  Watched watched(with([](HeartbeatLimits& limits) { limits.stall_timeout = milliseconds(500); }),
                  std::move(ends.ours));
  const std::uint64_t before = watched->stats().received;
  EXPECT_TRUE(wait_until([&] {
    peer->progress();
    return watched->stats().received >= before + 100;  // a second
  }));
  EXPECT_TRUE(watched.silent_so_far());
  EXPECT_EQ(watched.verdict().kind, Kind::stalled);
}

TEST(Heartbeat, WhatIsNoHeartbeatIsRefused) {
  const HeartbeatFrame good = {kGeneration, 1, 1, 0, 0, 10, 1};
  auto changed = [&](auto change) {
    HeartbeatFrame frame = good;
    change(frame);
    return frame;
  };
  const std::pair<HeartbeatFrame, const char*> cases[] = {
      {changed([](HeartbeatFrame& frame) { frame.generation = 8; }), "generation 8 came in generation 7"},
      {changed([](HeartbeatFrame& frame) { frame.sequence = 2; }), "heartbeat 2 came after 0"},
      {changed([](HeartbeatFrame& frame) { frame.echo_us = UINT64_MAX; }), "go backwards"},
      {changed([](HeartbeatFrame& frame) { frame.interval_ms = 60'000; }),
       "come every 60000 ms, and here it would be taken for dead after 120000 ms"},
  };
  for (const auto& [frame, text] : cases) {
    Ends ends;
    send_frame(ends.peers, frame);
    Watched watched(kPatient, std::move(ends.ours));
    const HeartbeatVerdict verdict = watched.verdict();
    EXPECT_EQ(verdict.kind, Kind::malformed);
    EXPECT_NE(verdict.reason.find(text), std::string::npos) << verdict.reason;
  }
  Ends ends;
  Watched watched(kPatient, std::move(ends.ours));
  const std::string garbage(200, 'x');
  ASSERT_EQ(::send(ends.peers.get(), garbage.data(), garbage.size(), MSG_NOSIGNAL), 200);
  EXPECT_EQ(watched.verdict().kind, Kind::malformed);
}

TEST(Heartbeat, AFloodIsRefused) {
  Ends ends;
  Watched watched(kPatient, std::move(ends.ours));
  std::thread flood([socket = ends.peers.get()] {
    for (std::uint64_t sequence = 1;; ++sequence) {
      const auto bytes = encode_heartbeat({kGeneration, sequence, 1, 0, 0, 10, 1});
      while (::send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL) < 0) {
        if (errno != EAGAIN) return;
        std::this_thread::yield();
      }
    }
  });
  EXPECT_EQ(watched.verdict().kind, Kind::malformed);
  watched.end();
  flood.join();
}

TEST(Heartbeat, APeerThatDoesNotReadCostsNothing) {
  Ends ends;
  const int small = 1;  // the kernel makes some kilobytes of it
  ASSERT_EQ(::setsockopt(ends.ours.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
  Watched watched(with([](HeartbeatLimits& limits) { limits.interval = milliseconds(1); }),
                  std::move(ends.ours));
  std::uint64_t sent = 0;
  int unchanged = 0;
  EXPECT_TRUE(wait_until([&] {
    std::this_thread::sleep_for(milliseconds(20));
    unchanged = std::exchange(sent, watched->stats().sent) == sent && sent > 0 ? unchanged + 1 : 0;
    return unchanged == 5;
  })) << "it goes on queueing";
  EXPECT_TRUE(watched.silent_so_far());
}

// A process with one heartbeat, which sends a byte when there is a verdict.
ChildProcess beating_child(Ends& ends) {
  return ChildProcess([fd = std::exchange(ends.peers, {}).release(), other = ends.ours.get()](int socket) {
    ::close(other);
    auto limits = with([](HeartbeatLimits& changed) { changed.timeout = milliseconds(300); });
    Heartbeat heartbeat(limits, kGeneration, Connection(UniqueFd(fd)),
                        [socket](const HeartbeatVerdict& verdict) {
                          const char kind = static_cast<char>(verdict.kind);
                          [[maybe_unused]] const auto sent = ::send(socket, &kind, 1, MSG_NOSIGNAL);
                        });
    char byte;
    return ::recv(socket, &byte, 1, 0) == 0 ? 0 : 1;  // until the test ends
  });
}

TEST(Heartbeat, AProcessThatStoodStillDoesNotTakeItsPeerForDead) {
  Ends ends;
  ChildProcess child = beating_child(ends);
  Watched watched(kPatient, std::move(ends.ours));
  ASSERT_TRUE(wait_until([&] { return watched->stats().received > 3; }));
  ::kill(child.pid(), SIGSTOP);
  const std::uint64_t sent = watched->stats().sent;
  ASSERT_TRUE(wait_until([&] { return watched->stats().sent > sent + 60; }));  // twice its time-out
  ::kill(child.pid(), SIGCONT);
  const std::uint64_t received = watched->stats().received;
  ASSERT_TRUE(wait_until([&] { return watched->stats().received > received + 50; }));
  char kind;
  EXPECT_EQ(::recv(child.socket(), &kind, 1, MSG_DONTWAIT), -1) << "it has given a verdict";
  watched.end();
}

TEST(Heartbeat, AProcessThatStandsStillIsTakenForDead) {
  Ends ends;
  ChildProcess child = beating_child(ends);
  Watched watched(with([](HeartbeatLimits& limits) { limits.timeout = milliseconds(500); }),
                  std::move(ends.ours));
  ASSERT_TRUE(wait_until([&] { return watched->stats().received > 3; }));
  ::kill(child.pid(), SIGSTOP);
  EXPECT_EQ(watched.verdict().kind, Kind::silent);
}

// A secondary's port with TLS, which makes a heartbeat of the connection that comes.
class TlsSecondary {
 public:
  explicit TlsSecondary(const PairedHosts& hosts, const HeartbeatLimits& limits = kPatient)
      : acceptor_("127.0.0.1", 0, events(limits), hosts.server) {}

  std::uint16_t port() const { return acceptor_.port(); }
  Watched& end() {
    EXPECT_TRUE(wait_until([&] {
      const std::lock_guard lock(mutex_);
      return end_.has_value() || !refused_.empty();
    }));
    const std::lock_guard lock(mutex_);
    if (!end_) throw std::runtime_error("the connection was refused: " + refused_);
    return *end_;
  }

 private:
  Acceptor::Events events(const HeartbeatLimits& limits) {
    return {[this, limits](Acceptor::Link link, Connection connection, std::string, std::string) {
              EXPECT_EQ(link, Acceptor::Link::heartbeat);
              EXPECT_TRUE(connection.tls);
              const std::lock_guard lock(mutex_);
              end_.emplace(limits, std::move(connection));
            },
            [this](std::string, std::string reason) {
              const std::lock_guard lock(mutex_);
              refused_ = std::move(reason);
            }};
  }

  std::mutex mutex_;  // guards the following two
  std::optional<Watched> end_;
  std::string refused_;
  Acceptor acceptor_;  // after what its events touch
};

TEST(Heartbeat, TwoEndsHearEachOtherThroughTls) {
  const PairedHosts hosts;
  TlsSecondary secondary(hosts);
  Watched primary(kPatient, target_of(secondary.port(), hosts.client));
  Watched& other = secondary.end();
  EXPECT_TRUE(wait_until([&] { return primary->stats().received >= 20 && other->stats().received >= 20; }));
  EXPECT_TRUE(primary.silent_so_far() && other.silent_so_far());
  primary.end();
}

TEST(Heartbeat, ARefusedCertificateIsToldWithItsReason) {
  const PairedHosts hosts, strangers;
  TlsSecondary secondary(hosts);
  Watched primary(kPatient,
                  target_of(secondary.port(), testing::credentials(strangers.a, hosts.b.certificate_pem)));
  const HeartbeatVerdict verdict = primary.verdict();
  EXPECT_EQ(verdict.kind, Kind::closed);
  EXPECT_NE(verdict.reason.find("doesn't trust our certificate"), std::string::npos) << verdict.reason;
}

// All in one record.
void send_through_tls(const Connection& connection, std::vector<std::byte> bytes) {
  iovec piece = {bytes.data(), bytes.size()};
  send_all(connection.calls(), connection.fd.get(), {&piece, 1});
}

TEST(Heartbeat, WhatTlsHoldsBackIsHeardThoughTheSocketIsSilent) {
  const PairedHosts hosts;
  TlsSecondary secondary(hosts);
  LinkSockets sockets;
  const Connection& primary = sockets.connect("127.0.0.1", secondary.port(), 10'000, hosts.client.get());
  const auto preface = encode_heartbeat_preface(kToken, kGeneration);
  std::vector<std::byte> bytes(preface.begin(), preface.end());
  for (std::uint64_t sequence = 1; sequence <= 100; ++sequence) {
    const auto frame = encode_heartbeat({kGeneration, sequence, 1, 0, 0, 10, 1});
    bytes.insert(bytes.end(), frame.begin(), frame.end());
  }
  // The acceptor's part and the heartbeats', behind which nothing comes.
  send_through_tls(primary, bytes);
  EXPECT_TRUE(wait_until([&] { return secondary.end()->stats().received == 100; }));
}

// Two ends that have shaken hands, over a socket with small buffers.
struct TlsEnds {
  explicit TlsEnds(const PairedHosts& hosts) {
    std::tie(ours.fd, peers.fd) = testing::narrow_socket_pair();
    ours.tls = std::make_unique<TlsSession>(*hosts.server, ours.fd.get(), TlsSession::Side::server);
    peers.tls = std::make_unique<TlsSession>(*hosts.client, peers.fd.get(), TlsSession::Side::client);
    std::thread other([this] { ours.tls->handshake_within(10'000); });
    peers.tls->handshake_within(10'000);
    other.join();
  }

  Connection ours, peers;
};

TEST(Heartbeat, AForgedRecordEndsTheConnectionAndAccusesNobody) {
  const PairedHosts hosts;
  TlsEnds ends(hosts);
  Watched watched(with([](HeartbeatLimits& limits) { limits.closed_grace = milliseconds(1); }),
                  std::move(ends.ours));
  const std::string forged = std::string("\x17\x03\x03\x00\x20", 5) + std::string(32, 'x');
  ASSERT_EQ(::send(ends.peers.fd.get(), forged.data(), forged.size(), MSG_NOSIGNAL),
            static_cast<ssize_t>(forged.size()));
  const HeartbeatVerdict verdict = watched.verdict();
  EXPECT_EQ(verdict.kind, Kind::closed);
  EXPECT_NE(verdict.reason.find("TLS: "), std::string::npos) << verdict.reason;
}

TEST(Heartbeat, ATlsPeerThatDoesNotReadIsStillHeardAndJudged) {
  const PairedHosts hosts;
  TlsEnds ends(hosts);
  Watched watched(with([](HeartbeatLimits& limits) {
                    limits.interval = milliseconds(1);
                    limits.timeout = milliseconds(500);
                  }),
                  std::move(ends.ours));
  std::uint64_t sent = 0;
  int unchanged = 0;
  ASSERT_TRUE(wait_until([&] {
    std::this_thread::sleep_for(milliseconds(20));
    unchanged = std::exchange(sent, watched->stats().sent) == sent && sent > 1 ? unchanged + 1 : 0;
    return unchanged == 5;
  })) << "it goes on queueing";
  EXPECT_TRUE(watched.silent_so_far());
  const auto frame = encode_heartbeat({kGeneration, 1, 1, 0, 0, 1, 1});
  send_through_tls(ends.peers, {frame.begin(), frame.end()});
  EXPECT_TRUE(wait_until([&] { return watched->stats().received == 1; }));
  EXPECT_EQ(watched.verdict().kind, Kind::silent);
}

TEST(Heartbeat, EndsWhileItShakesHands) {
  const PairedHosts hosts;
  const testing::Listener mute;  // connections lie in its backlog
  Watched primary(kPatient, target_of(mute.port, hosts.client));
  std::this_thread::sleep_for(milliseconds(50));  // into the handshake, as a rule: nothing tells
  primary.end();
  EXPECT_TRUE(primary.silent_so_far());
}

TEST(Heartbeat, EndsWhileItConnects) {
  // An address that answers nothing: packets to it go nowhere, or are refused at once where there is no
  // route.
  Watched watched(kPatient, Heartbeat::Target{"192.0.2.1", 9, kToken});
  watched.end();
}

}  // namespace
}  // namespace colo
