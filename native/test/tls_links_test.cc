// TLS where the agents use it: the acceptor, the links, the pump, and a whole checkpoint from engine to
// engine.
#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include "../core/link_sockets.h"
#include "../core/tls_pump.h"
#include "acceptor_harness.h"
#include "primary_harness.h"
#include "tls_harness.h"

namespace colo {
namespace {

using testing::AcceptorLog;
using testing::credentials;
using testing::narrow_socket_pair;
using testing::PairedHosts;
using testing::self_signed;

constexpr int kPatienceMs = 10000;

std::string preface(const std::string& magic) {
  return magic + std::string(kPrefaceBytes - magic.size(), 'p');
}

// A plain connection to the loopback address, from `host` of it.
UniqueFd connect_from(const char* host, std::uint16_t port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  EXPECT_EQ(::inet_pton(AF_INET, host, &address.sin_addr), 1);
  EXPECT_EQ(::bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  return fd;
}

void send_text(const Connection& connection, std::string text) {
  iovec piece = {text.data(), text.size()};
  send_all(connection.calls(), connection.fd.get(), {&piece, 1}, "it");
}

std::string receive_text(const Connection& connection, std::size_t length) {
  std::string text(length, '\0');
  receive_all(connection.calls(), connection.fd.get(), std::as_writable_bytes(std::span(text)), "it");
  return text;
}

std::string connect_error(std::uint16_t port, const TlsCredentials& own) {
  LinkSockets sockets;
  try {
    sockets.connect("127.0.0.1", port, kPatienceMs, &own);
    return "none";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_LINK");
    return error.what();
  }
}

TEST(TlsLinks, AcceptorTakesAPairedPeerAndReadsNothingPastThePreface) {
  const PairedHosts hosts;
  AcceptorLog log;
  const Acceptor acceptor("127.0.0.1", 0, log.events(), hosts.server);
  LinkSockets sockets;
  Connection& client = sockets.connect("127.0.0.1", acceptor.port(), kPatienceMs, hosts.client.get());
  send_text(client, preface("COLOCTL1") + "rest");
  ASSERT_TRUE(log.wait(1, 0));
  EXPECT_EQ(log.accepted[0].link, Acceptor::Link::control);
  EXPECT_EQ(receive_text(log.accepted[0].connection, 4), "rest");
  send_text(log.accepted[0].connection, "answer");
  EXPECT_EQ(receive_text(client, 6), "answer");
}

TEST(TlsLinks, BothSidesSayWhyAStrangerIsRefused) {
  const PairedHosts hosts;
  AcceptorLog log;
  const Acceptor acceptor("127.0.0.1", 0, log.events(), hosts.server);
  const auto stranger = credentials(self_signed(), hosts.b.certificate_pem);
  EXPECT_NE(connect_error(acceptor.port(), *stranger).find("the peer doesn't trust our certificate"),
            std::string::npos);
  ASSERT_TRUE(log.wait(0, 1));
  EXPECT_NE(log.refused[0].find("is self-signed and not in"), std::string::npos) << log.refused[0];
}

TEST(TlsLinks, PlainTextAndTlsDoNotMixAndBothSidesSayWhy) {
  const PairedHosts hosts;
  AcceptorLog log;
  const Acceptor secure("127.0.0.1", 0, log.events(), hosts.server);
  const Connection plain(connect_from("127.0.0.1", secure.port()));
  send_text(plain, preface("COLOCTL1"));
  ASSERT_TRUE(log.wait(0, 1));
  EXPECT_NE(log.refused[0].find("the peer doesn't speak TLS"), std::string::npos) << log.refused[0];
  EXPECT_EQ(receive_text(plain, 1), "\x15");  // an alert, by which it can tell

  const Acceptor insecure("127.0.0.1", 0, log.events());
  EXPECT_EQ(connect_error(insecure.port(), *hosts.client),
            "the peer doesn't speak TLS: was it started with --insecure?");
  ASSERT_TRUE(log.wait(0, 2));
  EXPECT_NE(log.refused[1].find("this agent was started with --insecure"), std::string::npos)
      << log.refused[1];
}

// What becomes of peers who have sent something else of a handshake each, and say no more, beside one who is
// good. Empty: this machine is too slow for that limit.
std::vector<std::string> refused_beside_a_good_peer(unsigned timeout_ms) {
  const PairedHosts hosts;
  AcceptorLog log;
  const Acceptor acceptor("127.0.0.1", 0, log.events(), hosts.server, timeout_ms);
  std::vector<Connection> slow;
  for (int i = 0; i < 5; ++i) slow.emplace_back(connect_from("127.0.0.2", acceptor.port()));
  LinkSockets sockets;
  try {
    send_text(slow[0], "\x16");
    send_text(slow[1], std::string("\x16\x03\x01\x02\x00", 5));
    sockets.connect("127.0.0.1", acceptor.port(), kPatienceMs, hosts.client.get());  // and no preface
    Connection& good = sockets.connect("127.0.0.1", acceptor.port(), kPatienceMs, hosts.client.get());
    send_text(good, preface("COLOBLK1"));
  } catch (const Error&) {
    return {};
  }
  const bool all = log.wait(1, 6, std::chrono::milliseconds(timeout_ms + kPatienceMs));
  return all && log.accepted[0].refused_before == 0 ? log.refused : std::vector<std::string>{};
}

TEST(TlsLinks, SlowPeersHoldUpNobodyAndGoWhenTheirTimeIsUp) {
  std::vector<std::string> refused;
  unsigned timeout_ms = 2000;
  while ((refused = refused_beside_a_good_peer(timeout_ms)).empty() && timeout_ms < 30'000) timeout_ms *= 4;
  ASSERT_EQ(refused.size(), 6u);
  EXPECT_EQ(refused[0], "no TLS handshake within " + std::to_string(timeout_ms) + " ms");
  EXPECT_EQ(refused[5], "no preface within " + std::to_string(timeout_ms) + " ms");
}

// What becomes of peers whose bytes come one after the other, inside the handshake and behind it, for half as
// long again as they may take. Empty, too, when this machine is too slow for that limit.
std::vector<std::string> refused_of_drips(unsigned timeout_ms) {
  const PairedHosts hosts;
  AcceptorLog log;
  const Acceptor acceptor("127.0.0.1", 0, log.events(), hosts.server, timeout_ms);
  const Connection shaking(connect_from("127.0.0.2", acceptor.port()));
  LinkSockets sockets;
  const std::string hello = std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 9) + std::string(600, '\0');
  const std::string magic = preface("COLOCTL1");
  const Connection* shaken = nullptr;
  try {
    shaken = &sockets.connect("127.0.0.1", acceptor.port(), kPatienceMs, hosts.client.get());
  } catch (const Error&) {
    return {};
  }
  try {
    for (std::size_t at = 0; at < magic.size() - 1; ++at) {
      send_text(shaking, hello.substr(at, 1));
      send_text(*shaken, magic.substr(at, 1));
      if (log.wait(0, 2, std::chrono::milliseconds(timeout_ms / 40))) break;
    }
  } catch (const Error&) {
    // They have been left, one of them first.
  }
  return log.wait(0, 2, std::chrono::milliseconds(timeout_ms / 4)) ? log.refused : std::vector<std::string>{};
}

TEST(TlsLinks, OneByteAfterTheOtherIsNotEnough) {
  std::vector<std::string> refused;
  unsigned timeout_ms = 2000;
  while ((refused = refused_of_drips(timeout_ms)).empty() && timeout_ms < 30'000) timeout_ms *= 4;
  ASSERT_EQ(refused.size(), 2u) << "they hold their places for as long as they like";
  EXPECT_EQ(refused[0], "no TLS handshake within " + std::to_string(timeout_ms) + " ms");
  EXPECT_EQ(refused[1], "no preface within " + std::to_string(timeout_ms) + " ms");
}

// Its kernel answers, and keeps the connection alive for ever.
TEST(TlsLinks, APeerThatTakesNothingIsLeft) {
  const testing::Listener listener;
  LinkSockets sockets(300);
  Connection& connection = sockets.connect("127.0.0.1", listener.port, kPatienceMs, nullptr);
  std::atomic<bool> ended = false;
  std::thread impatient([&] {
    for (int waited_ms = 0; !ended && waited_ms < kPatienceMs; waited_ms += 50) ::poll(nullptr, 0, 50);
    sockets.cut();
  });
  try {
    send_text(connection, std::string(64 << 20, 'x'));
    ADD_FAILURE() << "nobody has taken it";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_LINK");
    EXPECT_EQ(error.sys_errno(), ETIMEDOUT);
  }
  ended = true;
  impatient.join();
}

TEST(TlsLinks, WhoHasMostConnectionsMakesRoom) {
  const PairedHosts hosts;
  AcceptorLog log;
  const Acceptor acceptor("127.0.0.1", 0, log.events(), hosts.server, 60000, 4);
  const UniqueFd first = connect_from("127.0.0.1", acceptor.port());
  std::vector<UniqueFd> flood;
  for (std::size_t i = 0; i < 20; ++i) flood.push_back(connect_from("127.0.0.2", acceptor.port()));
  ASSERT_TRUE(log.wait(0, 17));
  // The oldest of all still waits.
  Connection connection(UniqueFd(::dup(first.get())));
  ::fcntl(connection.fd.get(), F_SETFL, O_NONBLOCK);
  connection.tls = std::make_unique<TlsSession>(*hosts.client, connection.fd.get(), TlsSession::Side::client);
  connection.tls->handshake_within(kPatienceMs);
  send_text(connection, preface("COLOCTL1"));
  EXPECT_TRUE(log.wait(1, 17));
}

TEST(TlsLinks, CutEndsAHandshakeInProgress) {
  const PairedHosts hosts;
  const testing::Listener silent;  // the kernel answers, nobody else does
  LinkSockets sockets;
  std::thread cutter([&] {
    ::poll(nullptr, 0, 20);  // right either way
    sockets.cut();
  });
  EXPECT_THROW(sockets.connect("127.0.0.1", silent.port, 600'000, hosts.client.get()), Error);
  cutter.join();
}

struct Pumped {
  PairedHosts hosts;
  std::mutex mutex;
  std::condition_variable changed;
  bool ended = false;
  Connection peer;
  std::optional<TlsPump> pump;  // goes before what its thread tells of its end
  Connection user;

  Pumped() {
    Connection ours;
    std::tie(ours.fd, peer.fd) = narrow_socket_pair();
    peer.tls = std::make_unique<TlsSession>(*hosts.client, peer.fd.get(), TlsSession::Side::client);
    std::thread server([&] {
      ours.tls = std::make_unique<TlsSession>(*hosts.server, ours.fd.get(), TlsSession::Side::server);
      ours.tls->handshake_within(kPatienceMs);
    });
    peer.tls->handshake_within(kPatienceMs);
    server.join();
    pump.emplace(std::move(ours), [this] {
      const std::lock_guard lock(mutex);
      ended = true;
      changed.notify_all();
    });
    user.fd = pump->take_user_end();
  }
  bool wait_ended() {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::milliseconds(kPatienceMs), [this] { return ended; });
  }
};

TEST(TlsPump, CarriesBothDirectionsAtOnce) {
  Pumped pumped;
  std::mt19937_64 random(1);
  std::string text(3'000'000, '\0');
  for (char& each : text) each = static_cast<char>(random());
  std::thread to_peer([&] { send_text(pumped.user, text); });
  std::thread at_user([&] { EXPECT_TRUE(receive_text(pumped.user, text.size()) == text); });
  // One session, one thread: the peer sends when it has received.
  EXPECT_TRUE(receive_text(pumped.peer, text.size()) == text);
  send_text(pumped.peer, text);
  to_peer.join();
  at_user.join();
}

TEST(TlsPump, WhatWasWrittenBeforeTheCloseStillGoesOut) {
  Pumped pumped;
  const std::string text(100'000, 'x');
  std::thread reader([&] { EXPECT_EQ(receive_text(pumped.peer, text.size()), text); });
  send_text(pumped.user, text);
  pumped.user.fd.reset();
  reader.join();
  std::byte byte;
  EXPECT_EQ(receive_some(pumped.peer.calls(), pumped.peer.fd.get(), {&byte, 1}, "it"), 0u);
  EXPECT_TRUE(pumped.wait_ended());
}

TEST(TlsPump, EachSideLearnsOfTheOthersEnd) {
  Pumped pumped;
  send_text(pumped.peer, "last");
  pumped.peer.tls->end_sending();
  ::shutdown(pumped.peer.fd.get(), SHUT_WR);
  EXPECT_EQ(receive_text(pumped.user, 4), "last");
  std::byte byte;
  EXPECT_EQ(receive_some(pumped.user.calls(), pumped.user.fd.get(), {&byte, 1}, "it"), 0u);
  send_text(pumped.user, "goodbye");  // one direction is over, the other isn't
  EXPECT_EQ(receive_text(pumped.peer, 7), "goodbye");
  ::shutdown(pumped.user.fd.get(), SHUT_WR);
  EXPECT_EQ(receive_some(pumped.peer.calls(), pumped.peer.fd.get(), {&byte, 1}, "it"), 0u);
  EXPECT_TRUE(pumped.wait_ended());
}

// A half-open peer: it takes nothing and doesn't go.
TEST(TlsPump, DestructionWaitsForASilentPeerOnlySoLong) {
  Pumped pumped;
  const std::string more_than_fits(60'000, 'x');
  ASSERT_GT(::send(pumped.user.fd.get(), more_than_fits.data(), more_than_fits.size(), MSG_DONTWAIT), 0);
  pumped.pump.reset();
  EXPECT_TRUE(pumped.wait_ended());
}

TEST(TlsLinks, CheckpointsGoFromEngineToEngine) {
  const PairedHosts hosts;
  testing::ModelledGuest primary_guest({{700, true}}), standby_guest({{700, false}});
  testing::TestStandby standby(standby_guest);
  const Acceptor::Events events = {
      [&](Acceptor::Link, Connection connection, std::string sent, std::string) {
        standby.engine->add_connection(std::move(connection), sent);
      },
      [](const std::string&, const std::string& reason) { ADD_FAILURE() << reason; }};
  const Acceptor acceptor("127.0.0.1", 0, events, hosts.server);
  std::mt19937_64 random(1);
  primary_guest.live(random, 200);
  PrimaryEngine engine(testing::options_for(primary_guest));
  standby.engine->open_session(testing::kTestToken, testing::kGeneration, 2);
  ASSERT_EQ(testing::protect(engine), "");
  testing::Outcome<> connected;
  engine.connect("127.0.0.1", acceptor.port(), testing::kTestToken, testing::kGeneration, 2, hosts.client,
                 connected.plain_done());
  ASSERT_EQ(connected.wait(), "");
  ASSERT_EQ(testing::sync(engine), "");
  ASSERT_TRUE(standby.wait_staged(0));
  for (std::uint64_t epoch = 1; epoch <= 5; ++epoch) {
    primary_guest.live(random, 60);
    ASSERT_EQ(testing::capture(engine, epoch), "");
    standby.engine->open_epoch(epoch);
    ASSERT_EQ(testing::transmit(engine, epoch, testing::vmstate_of(epoch, 30000)), "");
    ASSERT_TRUE(standby.wait_staged(epoch)) << standby.wait_failure();
    ASSERT_EQ(standby.commit(epoch), "");
    ASSERT_TRUE(testing::same_ram(testing::ram_of(standby_guest), primary_guest.model()))
        << "epoch " << epoch;
  }
  engine.disconnect();
}

}  // namespace
}  // namespace colo
