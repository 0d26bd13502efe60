// A bulk connection's limit with TLS beside that without: random pages over a loopback TCP connection, in the
// pieces that a checkpoint of whole pages has, to a thread that receives (and decrypts) them.
#include <arpa/inet.h>
#include <benchmark/benchmark.h>
#include <sys/socket.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <future>
#include <random>
#include <thread>
#include <vector>

#include "../core/acceptor.h"
#include "../core/certificate.h"
#include "../core/error.h"
#include "../core/link_sockets.h"

namespace colo {
namespace {

constexpr std::size_t kPage = 4096, kPages = 3000, kEntryHead = 16;
using Credentials = std::shared_ptr<const TlsCredentials>;

Credentials self_trusting() {
  std::string folder = std::filesystem::temp_directory_path() / "colo-bench-XXXXXX";
  if (::mkdtemp(folder.data()) == nullptr) std::abort();
  const std::int64_t now = ::time(nullptr);
  const KeyAndCertificate made = make_self_signed({"bench", {"*"}, now - 3600, now + 3600});
  const std::string certificate = folder + "/certificate", key = folder + "/key";
  std::ofstream(certificate) << made.certificate_pem;
  std::ofstream(key) << made.key_pem;
  std::filesystem::permissions(key, std::filesystem::perms::owner_read);
  auto credentials = std::make_shared<TlsCredentials>(TlsOptions{certificate, key, certificate, "bench", ""});
  std::filesystem::remove_all(folder);
  return credentials;
}

void drain(const Connection& connection) {
  std::vector<std::byte> into(1u << 20);
  try {
    while (receive_some(connection.calls(), connection.fd.get(), into, "it") > 0) continue;
  } catch (const Error&) {
    // the sender has gone
  }
}

void send_pages(benchmark::State& state, const Credentials& credentials) {
  std::promise<Connection> accepted;
  const Acceptor acceptor("127.0.0.1", 0,
                          {[&](Acceptor::Link, Connection connection, const std::string&,
                               const std::string&) { accepted.set_value(std::move(connection)); },
                           [](const std::string&, const std::string&) { std::abort(); }},
                          credentials);
  LinkSockets sockets;
  const Connection& link = sockets.connect("127.0.0.1", acceptor.port(), 5000, credentials.get());
  std::string preface = "COLOBLK1" + std::string(kPrefaceBytes - 8, '\0');
  iovec first = {preface.data(), preface.size()};
  send_all(link.calls(), link.fd.get(), {&first, 1});
  std::thread receiver([connection = accepted.get_future().get()] { drain(connection); });

  std::vector<std::uint64_t> pages(kPages * kPage / 8);
  std::mt19937_64 random(1);
  for (std::uint64_t& each : pages) each = random();
  std::array<std::byte, kEntryHead> head = {};
  std::vector<iovec> pieces(2 * kPages);
  for (auto _ : state) {
    for (std::size_t i = 0; i < kPages; ++i) {
      pieces[2 * i] = {head.data(), head.size()};
      pieces[2 * i + 1] = {pages.data() + i * kPage / 8, kPage};
    }
    send_all(link.calls(), link.fd.get(), pieces);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kPages * (kPage + kEntryHead)));
  sockets.cut();
  receiver.join();
}

void send_plain(benchmark::State& state) { send_pages(state, nullptr); }
BENCHMARK(send_plain)->Unit(benchmark::kMillisecond)->UseRealTime();

void send_tls(benchmark::State& state) { send_pages(state, self_trusting()); }
BENCHMARK(send_tls)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace colo
