#include "../core/tls_session.h"

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "../core/connection.h"
#include "../core/error.h"
#include "tls_harness.h"

namespace colo {
namespace {

using testing::credentials;
using testing::HostFiles;
using testing::Issuer;
using testing::narrow_socket_pair;
using testing::PairedHosts;
using testing::self_signed;

constexpr int kPatienceMs = 10000;
using Credentials = std::shared_ptr<const TlsCredentials>;

struct Ends {
  Connection client, server;
  std::string client_error, server_error;
};

void shake(const Credentials& own, Connection& connection, TlsSession::Side side, std::string& error) {
  try {
    connection.tls = std::make_unique<TlsSession>(*own, connection.fd.get(), side);
    connection.tls->handshake_within(kPatienceMs);
  } catch (const Error& thrown) {
    EXPECT_STREQ(thrown.code(), "ERR_COLO_LINK");
    error = thrown.what();
    ::shutdown(connection.fd.get(), SHUT_WR);
  }
}

Ends handshake(const Credentials& client, const Credentials& server) {
  Ends ends;
  std::tie(ends.client.fd, ends.server.fd) = narrow_socket_pair();
  std::thread other([&] { shake(server, ends.server, TlsSession::Side::server, ends.server_error); });
  shake(client, ends.client, TlsSession::Side::client, ends.client_error);
  other.join();
  return ends;
}

std::vector<std::byte> random_bytes(std::size_t length, std::mt19937_64& random) {
  std::vector<std::byte> bytes(length);
  for (std::byte& byte : bytes) byte = std::byte(random());
  return bytes;
}

// In pieces of all sizes, so that some are longer than a record and most share one.
void send_in_pieces(const Connection& connection, std::vector<std::byte> bytes, std::mt19937_64& random) {
  std::vector<iovec> pieces;
  for (std::size_t at = 0; at < bytes.size();) {
    const std::size_t length = std::min(bytes.size() - at, random() % (random() % 4 == 0 ? 50000 : 5000));
    pieces.push_back({bytes.data() + at, length});
    at += length;
  }
  send_all(connection.calls(), connection.fd.get(), pieces);
}

TEST(TlsSession, PairedHostsTalkInBothDirections) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  const PairedHosts hosts;
  const Ends ends = handshake(hosts.client, hosts.server);
  ASSERT_EQ(ends.client_error + ends.server_error, "");
  for (const auto& [from, to] :
       {std::pair(&ends.client, &ends.server), std::pair(&ends.server, &ends.client)}) {
    std::mt19937_64 random(seed);
    const std::vector<std::byte> sent = random_bytes(500000, random);
    std::thread sender([&, from = from] { send_in_pieces(*from, sent, random); });
    std::vector<std::byte> received(sent.size());
    receive_all(to->calls(), to->fd.get(), received);
    sender.join();
    EXPECT_TRUE(received == sent);
  }
}

TEST(TlsSession, KnowsThePeerAndHowItIsEncrypted) {
  const PairedHosts hosts;
  const Ends ends = handshake(hosts.client, hosts.server);
  const TlsInfo info = ends.client.tls->info();
  EXPECT_EQ(info.cipher, "TLSv1.3, TLS_AES_128_GCM_SHA256");
  EXPECT_EQ(info.peer, "every VM");
  EXPECT_EQ(info.fingerprint, hosts.server->own().fingerprint);
  EXPECT_EQ(ends.server.tls->info().fingerprint, hosts.client->own().fingerprint);
}

TEST(TlsSession, ThePeersEndIsTheEndOfTheStream) {
  const PairedHosts hosts;
  Ends ends = handshake(hosts.client, hosts.server);
  std::byte byte;
  ends.client.tls->end_sending();
  EXPECT_EQ(receive_some(ends.server.calls(), ends.server.fd.get(), {&byte, 1}, "it"), 0u);
  ends.server.tls.reset();
  ends.server.fd.reset();  // without a word
  EXPECT_EQ(receive_some(ends.client.calls(), ends.client.fd.get(), {&byte, 1}, "it"), 0u);
}

TEST(TlsSession, NoticesAChangedByte) {
  const PairedHosts hosts;
  Ends ends = handshake(hosts.client, hosts.server);
  const char forged[] = "\x17\x03\x03\x00\x20 0123456789012345678901234567890123";
  ASSERT_GT(::send(ends.client.fd.get(), forged, sizeof forged, MSG_NOSIGNAL), 0);
  std::byte byte;
  try {
    receive_some(ends.server.calls(), ends.server.fd.get(), {&byte, 1}, "it");
    FAIL() << "a record that nobody has encrypted was taken";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_LINK");
    EXPECT_NE(std::string(error.what()).find("TLS: "), std::string::npos) << error.what();
  }
}

// Who is refused, and what either side says of it. The refusing side is the server first, then the client.
struct Refusal {
  const char* name;
  KeyAndCertificate stranger;
  std::string trusted;  // by the host that refuses him
  std::string vm, peer_name;
  const char* reason;  // of the host that refuses
  const char* told;    // what the refused one learns
};

KeyAndCertificate with_chain(const KeyAndCertificate& own, const KeyAndCertificate& issuer) {
  return {own.key_pem, own.certificate_pem + issuer.certificate_pem};
}

std::vector<Refusal> refusals() {
  const Issuer ca(self_signed()), other_ca(self_signed());
  const KeyAndCertificate expired = self_signed("*", -3, -1), future = self_signed("*", 1, 2);
  const KeyAndCertificate pinned = self_signed(), other_vm = self_signed("db1");
  const KeyAndCertificate intermediate = ca.issue_ca(), no_intermediate = ca.issue_ca("critical,CA:FALSE");
  const KeyAndCertificate last = ca.issue_ca("critical,CA:TRUE,pathlen:0");
  const KeyAndCertificate below = Issuer(last, false).issue_ca();
  const char* const unknown = "the peer doesn't trust our certificate";
  const char* const wrong = "our certificate is for another VM or host";
  return {
      {"self-signed", self_signed(), pinned.certificate_pem, "web1", "", "is self-signed and not in",
       unknown},
      {"expired", expired, expired.certificate_pem, "web1", "", "has expired", "our certificate has expired"},
      {"not yet valid", future, future.certificate_pem, "web1", "", "is not valid yet", ""},
      {"another VM's", other_vm, other_vm.certificate_pem, "web1", "", "is for VM db1, not for the VM web1",
       wrong},
      {"another VM's by a CA", ca.issue("URI:colo-agent://vm/db1,DNS:b.example"), ca.certificate_pem(),
       "web1", "b.example", "is for VM db1, host b.example, not for the VM web1", wrong},
      {"another host's", ca.issue("DNS:c.example"), ca.certificate_pem(), "web1", "b.example",
       "is for host c.example, not for the host b.example", wrong},
      {"nobody's in particular", ca.issue("DNS:b.example"), ca.certificate_pem(), "web1", "",
       "is for host b.example, not for the VM web1", wrong},
      {"another CA's", other_ca.issue("URI:colo-agent://vm/web1"), ca.certificate_pem(), "web1", "",
       "was issued by nobody in", unknown},
      {"of a VM whose name begins with ours", ca.issue("URI:colo-agent://vm/web10"), ca.certificate_pem(),
       "web1", "", "is for VM web10, not for the VM web1", wrong},
      {"without names", ca.issue(""), ca.certificate_pem(), "web1", "",
       "is for /CN=test, not for the VM web1", wrong},
      {"without names, for a host", ca.issue(""), ca.certificate_pem(), "web1", "b.example",
       "is for /CN=test, not for the host b.example", wrong},
      {"by an intermediate that wasn't sent", Issuer(intermediate, false).issue("URI:colo-agent://vm/web1"),
       ca.certificate_pem(), "web1", "", "was issued by nobody in", unknown},
      {"by an intermediate that may not issue",
       with_chain(Issuer(no_intermediate, false).issue("URI:colo-agent://vm/web1"), no_intermediate),
       ca.certificate_pem(), "web1", "", "invalid CA certificate", ""},
      {"by an intermediate of one that may have none",
       with_chain(with_chain(Issuer(below, false).issue("URI:colo-agent://vm/web1"), below), last),
       ca.certificate_pem(), "web1", "", "path length constraint exceeded", ""},
      {"the intermediate itself", intermediate, ca.certificate_pem(), "web1", "", "is for /CN=test/O=CA",
       wrong},
      {"issued by a paired host", Issuer(pinned, false).issue("URI:colo-agent://vm/web1"),
       pinned.certificate_pem, "web1", "", "the peer's certificate", ""},
  };
}

TEST(TlsSession, RefusesWithTheReasonAndTheRefusedOneLearnsIt) {
  for (const Refusal& refusal : refusals()) {
    SCOPED_TRACE(refusal.name);
    const KeyAndCertificate own = self_signed();
    const Credentials host = credentials(own, refusal.trusted, refusal.vm, refusal.peer_name);
    const Credentials stranger = credentials(refusal.stranger, own.certificate_pem, "web1");
    const Ends as_client = handshake(stranger, host);
    EXPECT_NE(as_client.server_error.find(refusal.reason), std::string::npos) << as_client.server_error;
    EXPECT_NE(as_client.client_error.find(refusal.told), std::string::npos) << as_client.client_error;
    EXPECT_NE(as_client.client_error, "");
    const Ends as_server = handshake(host, stranger);
    EXPECT_NE(as_server.client_error.find(refusal.reason), std::string::npos) << as_server.client_error;
    EXPECT_NE(as_server.server_error, "");
  }
}

TEST(TlsSession, BelievesAnOwnCaAndWhatItsCertificatesAreFor) {
  const Issuer ca(self_signed());
  const KeyAndCertificate for_vm = ca.issue("URI:colo-agent://vm/web1");
  const KeyAndCertificate for_host = ca.issue("DNS:b.example,IP:10.0.0.2");
  const Credentials client = credentials(for_vm, ca.certificate_pem(), "web1", "b.example");
  const Credentials by_address = credentials(for_vm, ca.certificate_pem(), "web1", "10.0.0.2");
  const Credentials server = credentials(for_host, ca.certificate_pem(), "web1");
  for (const Credentials& each : {client, by_address}) {
    const Ends ends = handshake(each, server);
    EXPECT_EQ(ends.client_error + ends.server_error, "");
  }
}

TEST(TlsSession, BelievesWhomAnIntermediateOfItsCaHasIssued) {
  const Issuer ca(self_signed());
  const KeyAndCertificate intermediate = ca.issue_ca("critical,CA:TRUE,pathlen:0");
  const KeyAndCertificate own =
      with_chain(Issuer(intermediate, false).issue("URI:colo-agent://vm/web1"), intermediate);
  const Credentials host = credentials(own, ca.certificate_pem());
  const Ends ends = handshake(host, host);
  EXPECT_EQ(ends.client_error + ends.server_error, "");
}

TEST(TlsSession, RefusesACertificateThatIsForClientsAloneFromAServer) {
  const Issuer ca(self_signed());
  const Credentials both = credentials(ca.issue("URI:colo-agent://vm/web1"), ca.certificate_pem());
  const Credentials client =
      credentials(ca.issue("URI:colo-agent://vm/web1", "clientAuth"), ca.certificate_pem());
  const Ends right = handshake(client, both), wrong = handshake(both, client);
  EXPECT_EQ(right.client_error + right.server_error, "");
  EXPECT_NE(wrong.client_error.find("unsuitable certificate purpose"), std::string::npos)
      << wrong.client_error;
}

TEST(TlsSession, RefusesAChainOfMoreThan32KiB) {
  const Issuer ca(self_signed());
  KeyAndCertificate own = ca.issue("URI:colo-agent://vm/web1");
  while (own.certificate_pem.size() < 60'000) own.certificate_pem += ca.certificate_pem();  // in PEM: 4/3
  const Ends ends = handshake(credentials(own, ca.certificate_pem()),
                              credentials(ca.issue("URI:colo-agent://vm/web1"), ca.certificate_pem()));
  EXPECT_NE(ends.server_error.find("excessive message size"), std::string::npos) << ends.server_error;
}

// What stands outlives its certificates: a guest isn't left without protection for a date. What is new is
// refused.
TEST(TlsSession, ACertificateThatExpiresEndsNoSessionAndBeginsNone) {
  for (std::int64_t valid_s = 2; valid_s < 1000; valid_s *= 2) {
    const std::int64_t until_s = ::time(nullptr) + valid_s;
    const KeyAndCertificate own = make_self_signed({"test", {"*"}, until_s - testing::kDayS, until_s});
    const Credentials host = credentials(own, own.certificate_pem);
    const Ends ends = handshake(host, host);
    if (!(ends.client_error + ends.server_error).empty()) continue;  // this machine was too slow
    EXPECT_EQ(ends.client.tls->info().expires_s, until_s);
    while (::time(nullptr) <= until_s) ::poll(nullptr, 0, 50);
    std::byte byte = std::byte('x');
    iovec piece = {&byte, 1};
    send_all(ends.client.calls(), ends.client.fd.get(), {&piece, 1});
    receive_all(ends.server.calls(), ends.server.fd.get(), {&byte, 1});
    EXPECT_NE(handshake(host, host).client_error.find("has expired"), std::string::npos);
    return;
  }
  FAIL() << "no handshake came to its end in time";
}

// OpenSSL's own client, which knows nothing of credentials.
std::string server_says_to(SSL_CTX* client_context) {
  const PairedHosts hosts;
  Ends ends;
  std::tie(ends.client.fd, ends.server.fd) = narrow_socket_pair();
  std::thread other([&] { shake(hosts.server, ends.server, TlsSession::Side::server, ends.server_error); });
  const OwnedSsl ssl(::SSL_new(client_context));
  ::SSL_set_fd(ssl.get(), ends.client.fd.get());
  while (true) {
    const int done = ::SSL_connect(ssl.get());
    if (done == 1 || ::SSL_get_error(ssl.get(), done) != SSL_ERROR_WANT_READ) break;
    pollfd waited = {ends.client.fd.get(), POLLIN, 0};
    ::poll(&waited, 1, kPatienceMs);
  }
  other.join();
  ::ERR_clear_error();
  return ends.server_error;
}

TEST(TlsSession, RefusesWhoShowsNoCertificateOrSpeaksAnOlderTls) {
  const OwnedContext nobody(::SSL_CTX_new(::TLS_client_method()));
  EXPECT_NE(server_says_to(nobody.get()).find("did not return a certificate"), std::string::npos);
  const OwnedContext old(::SSL_CTX_new(::TLS_client_method()));
  ::SSL_CTX_set_max_proto_version(old.get(), TLS1_2_VERSION);
  EXPECT_NE(server_says_to(old.get()).find("unsupported protocol"), std::string::npos);
}

void finish(SSL* ssl, int fd, int (*step)(SSL*)) {
  while (step(ssl) != 1) {
    pollfd waited = {fd, POLLIN, 0};
    ASSERT_EQ(::poll(&waited, 1, kPatienceMs), 1);
  }
}

// Counts TLS's KeyUpdate messages, which OpenSSL shows to whoever has set this.
std::atomic<unsigned> key_updates_seen = 0;
void count_key_updates(int, int, int type, const void* message, std::size_t length, SSL*, void*) {
  constexpr char kKeyUpdate = 24;
  if (type == SSL3_RT_HANDSHAKE && length > 0 && *static_cast<const char*>(message) == kKeyUpdate)
    ++key_updates_seen;
}

TEST(TlsSession, ChangesItsKeyInTimeAsOftenAsItTakes) {
  const KeyAndCertificate own = self_signed();
  const HostFiles files(own, own.certificate_pem);
  TlsOptions options = files.options();
  options.records_per_key = 3;
  const auto host = std::make_shared<TlsCredentials>(options);
  ::SSL_CTX_set_msg_callback(host->context(), &count_key_updates);
  const Ends ends = handshake(host, host);
  ASSERT_EQ(ends.client_error + ends.server_error, "");
  std::mt19937_64 random(1);
  const std::vector<std::byte> sent = random_bytes(8'000'000, random);
  for (const auto& [from, to] :
       {std::pair(&ends.client, &ends.server), std::pair(&ends.server, &ends.client)}) {
    key_updates_seen = 0;
    std::thread sender([&, from = from] {
      std::vector<std::byte> bytes = sent;
      iovec piece = {bytes.data(), bytes.size()};
      send_all(from->calls(), from->fd.get(), {&piece, 1});
    });
    std::vector<std::byte> received(sent.size());
    receive_all(to->calls(), to->fd.get(), received);
    sender.join();
    EXPECT_TRUE(received == sent);
    EXPECT_GT(key_updates_seen, sent.size() / 16384 / 3);  // each is seen twice: sent, and received
  }
}

// OpenSSL's limit for records without data doesn't count TLS's own messages.
TEST(TlsSession, APeerThatOnlyChangesItsKeysIsLeft) {
  const PairedHosts hosts;
  Ends ends;
  std::tie(ends.client.fd, ends.server.fd) = narrow_socket_pair();
  std::thread other([&] { shake(hosts.server, ends.server, TlsSession::Side::server, ends.server_error); });
  const OwnedSsl ssl(::SSL_new(hosts.client->context()));
  ::SSL_set_fd(ssl.get(), ends.client.fd.get());
  finish(ssl.get(), ends.client.fd.get(), &::SSL_connect);
  other.join();
  ASSERT_EQ(ends.server_error, "");
  const auto change_keys = [&] {
    return ::SSL_key_update(ssl.get(), SSL_KEY_UPDATE_NOT_REQUESTED) == 1 &&
           ::SSL_do_handshake(ssl.get()) == 1;
  };

  // A few do no harm, and what comes behind them in the same bytes is found.
  char byte = 'x';
  ASSERT_TRUE(change_keys() && change_keys());
  ASSERT_EQ(::SSL_write(ssl.get(), &byte, 1), 1);
  EXPECT_EQ(ends.server.calls().recv(ends.server.fd.get(), &byte, 1, 0), 1);

  std::string reason;
  for (int i = 0; i < 1000 && reason.empty(); ++i) {
    ASSERT_TRUE(change_keys());
    try {
      EXPECT_EQ(ends.server.calls().recv(ends.server.fd.get(), &byte, 1, 0), -1);
      EXPECT_EQ(errno, EAGAIN);
    } catch (const Error& error) {
      reason = error.what();
    }
  }
  EXPECT_EQ(reason, "TLS: the peer sends messages without data, again and again");
}

TEST(TlsSession, GivesASilentPeerUp) {
  const PairedHosts hosts;
  auto [ours, theirs] = narrow_socket_pair();
  TlsSession session(*hosts.client, ours.get(), TlsSession::Side::client);
  try {
    session.handshake_within(20);
    FAIL() << "a handshake with nobody";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "the TLS handshake didn't end within 20 ms");
  }
}

// One byte after the other would make a time limit for each of them worth nothing.
TEST(TlsSession, GivesAPeerUpThatSendsAByteNowAndThen) {
  const PairedHosts hosts;
  auto [ours, theirs] = narrow_socket_pair();
  std::atomic<bool> ended = false;
  std::thread slow([&, fd = theirs.get()] {
    const std::string record = std::string("\x16\x03\x03\x01\x00", 5) + std::string(256, '\x02');
    for (std::size_t at = 0; !ended; at = (at + 1) % record.size()) {
      ::send(fd, record.data() + at, 1, MSG_NOSIGNAL);
      ::poll(nullptr, 0, 20);
    }
  });
  TlsSession session(*hosts.client, ours.get(), TlsSession::Side::client);
  try {
    session.handshake_within(1000);
    ADD_FAILURE() << "a handshake with nobody";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "the TLS handshake didn't end within 1000 ms");
  }
  ended = true;
  slow.join();
}

// They stand in our log, and its owner decides nothing about that.
TEST(Certificate, NamesForPeopleAreShortAndPrintable) {
  const std::string vm = "a\x1b[2J\n\xff" + std::string(5000, 'b');
  const std::int64_t now = ::time(nullptr);
  const OwnedCertificate certificate =
      testing::certificate_in(make_self_signed({"test", {vm, "other"}, now, now + 1}).certificate_pem);
  const std::string names = names_of(certificate.get());
  EXPECT_EQ(names.substr(0, 11), "VM a?[2J??b");
  EXPECT_EQ(names.size(), 256u + 3);
  EXPECT_EQ(vms_of(certificate.get())[0], vm);
}

std::string error_of(const HostFiles& files) {
  try {
    files.open();
    return "nothing";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_CREDENTIALS");
    return error.what();
  }
}

TEST(TlsCredentials, SaysWhichFileIsOfNoUseAndWhy) {
  const KeyAndCertificate own = self_signed(), other = self_signed();
  const HostFiles files(own, other.certificate_pem);
  EXPECT_EQ(error_of(files), "nothing");
  ::chmod(files.file("key").c_str(), 0640);
  EXPECT_NE(error_of(files).find("key can be read by others than its owner: chmod 600"), std::string::npos);
  ::chmod(files.file("key").c_str(), 0600);
  ASSERT_EQ(::chown(files.file("key").c_str(), 12345, 0), 0);
  EXPECT_NE(error_of(files).find("belongs to user 12345"), std::string::npos);
  ASSERT_EQ(::chown(files.file("key").c_str(), 0, 0), 0);
  ::chmod(files.file("trusted").c_str(), 0664);
  EXPECT_NE(error_of(files).find("trusted says whom this agent believes, and can be changed by others"),
            std::string::npos);
  ::chmod(files.file("trusted").c_str(), 0644);
  ASSERT_EQ(::chown(files.file("trusted").c_str(), 12345, 0), 0);
  EXPECT_NE(error_of(files).find("trusted belongs to user 12345"), std::string::npos);
  ASSERT_EQ(::chown(files.file("trusted").c_str(), 0, 0), 0);
  files.write("key", other.key_pem);
  EXPECT_NE(error_of(files).find("is not the one of the certificate"), std::string::npos);
  files.write("key", "no key");
  EXPECT_NE(error_of(files).find("can't be read (it must be PEM, without a password)"), std::string::npos);
  files.write("trusted", "");
  files.write("key", own.key_pem);
  EXPECT_NE(error_of(files).find("trusted holds no certificate"), std::string::npos);
  files.write("trusted", other.certificate_pem.substr(0, 200) + other.certificate_pem.substr(210));
  EXPECT_NE(error_of(files).find("trusted holds a certificate that can't be read"), std::string::npos);
  std::filesystem::remove(files.file("certificate"));
  EXPECT_NE(error_of(files).find("No such file"), std::string::npos);
  EXPECT_NE(error_of(files).find("`colo-agent pair` makes it"), std::string::npos);
}

}  // namespace
}  // namespace colo
