// The acceptor behind its real port: whoever connects is told from others by the first 64 bytes, in pieces of
// any size.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <map>
#include <mutex>
#include <optional>
#include <string>

#include "../core/acceptor.h"
#include "../core/error.h"
#include "../core/unique_fd.h"
#include "naive_decoders.h"
#include "targets.h"

namespace colo::fuzz {
namespace {

const std::map<std::string, Acceptor::Link> kLinks = {{"COLOCTL1", Acceptor::Link::control},
                                                      {"COLOBLK1", Acceptor::Link::bulk},
                                                      {"COLOHBT1", Acceptor::Link::heartbeat},
                                                      {"COLODOC1", Acceptor::Link::doctor}};

struct Outcome {
  bool accepted = false;
  Acceptor::Link link = Acceptor::Link::control;
  UniqueFd fd;
  std::string preface;
};

// 127.0.0.0/8 has room for many: `host` is what follows the 127.
sockaddr_in loopback(std::uint32_t host, std::uint16_t port) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl((127u << 24) + host);
  return address;
}

class Listener {
 public:
  // Plain text: a byte that TLS has let through is what is looked at here.
  Listener() : acceptor_("127.0.0.1", 0, events(), nullptr, 60'000) {}

  UniqueFd connect() const {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    // Closed by a reset, and each from another address: thousands of connections a second would use up the
    // ports that wait in TIME_WAIT, on this side or, where the acceptor closes first, on its own.
    const linger at_once = {1, 0};
    COLO_ASSERT(::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
    static std::uint32_t number = 0;
    const sockaddr_in from = loopback(number++ % 60'000 + 2, 0);
    COLO_ASSERT(::bind(fd.get(), reinterpret_cast<const sockaddr*>(&from), sizeof from) == 0);
    const sockaddr_in to = loopback(1, acceptor_.port());
    COLO_ASSERT(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0);
    return fd;
  }

  Outcome wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return outcome_.has_value(); });
    Outcome outcome = std::move(*outcome_);
    outcome_.reset();
    return outcome;
  }

 private:
  Acceptor::Events events() {
    return {[this](Acceptor::Link link, Connection connection, std::string preface, std::string) {
              tell({true, link, std::move(connection.fd), std::move(preface)});
            },
            [this](std::string, std::string) { tell({}); }};
  }
  void tell(Outcome outcome) {
    const std::lock_guard lock(mutex_);
    COLO_ASSERT(!outcome_);
    outcome_ = std::move(outcome);
    changed_.notify_one();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Outcome> outcome_;
  Acceptor acceptor_;  // after what its events touch
};

std::string read_to_end(int fd) {
  std::string text;
  std::array<char, 4096> bytes;
  for (;;) {
    const ssize_t got = ::recv(fd, bytes.data(), bytes.size(), 0);
    if (got > 0) text.append(bytes.data(), static_cast<std::size_t>(got));
    if (got == 0) return text;
    if (got < 0 && errno != EAGAIN) return text;
  }
}

}  // namespace

// The first byte is the size of the pieces; what the peer sends follows.
Verdict acceptor(Input input) {
  if (input.empty() || input.size() > 4096) return Verdict::refused;
  static Listener listener;
  const std::size_t piece_bytes = static_cast<std::size_t>(input[0]) + 1;
  const std::string text(reinterpret_cast<const char*>(input.data()) + 1, input.size() - 1);
  const UniqueFd peer = listener.connect();
  for (std::size_t at = 0; at < text.size(); at += piece_bytes) {
    const std::size_t piece = std::min(piece_bytes, text.size() - at);
    if (::send(peer.get(), text.data() + at, piece, MSG_NOSIGNAL) < 0) break;  // it was refused already
  }
  (void)::shutdown(peer.get(), SHUT_WR);
  const Outcome outcome = listener.wait();

  const std::string magic = text.substr(0, 8);
  const auto known = kLinks.find(magic);
  const bool ours = text.size() >= kPrefaceBytes && known != kLinks.end();
  COLO_ASSERT(outcome.accepted == ours);
  if (!ours) return Verdict::refused;
  COLO_ASSERT(outcome.link == known->second);
  COLO_ASSERT(outcome.preface == text.substr(0, kPrefaceBytes));
  // Not one byte more was taken than the preface.
  COLO_ASSERT(read_to_end(outcome.fd.get()) == text.substr(kPrefaceBytes));
  return Verdict::accepted;
}

}  // namespace colo::fuzz
