#include "tls_session.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>

#include "certificate.h"
#include "error.h"
#include "openssl_owned.h"

namespace colo {
namespace {

constexpr std::string_view kGreeting = "COLOTLS1";

// What a peer's alert means for whoever set the certificates up; the library's words otherwise.
std::string alert_text(int reason) {
  switch (reason - SSL_AD_REASON_OFFSET) {
    case SSL_AD_UNKNOWN_CA:
      return "the peer doesn't trust our certificate: its agent's log says more; pair the hosts, or give it "
             "our CA";
    case SSL_AD_CERTIFICATE_EXPIRED:
      return "the peer says that our certificate has expired; pair the hosts again or renew it";
    case SSL_AD_BAD_CERTIFICATE:
      return "the peer says that our certificate is for another VM or host";
    case SSL_AD_CERTIFICATE_REQUIRED:
      return "the peer asks for a certificate";
    default:
      return {};
  }
}

std::string library_reason() {
  const unsigned long error = ::ERR_peek_error();
  const std::string alert = ERR_GET_LIB(error) == ERR_LIB_SSL ? alert_text(ERR_GET_REASON(error)) : "";
  const std::string reason = openssl_reason();
  return alert.empty() ? reason : alert;
}

bool is_end_of_stream(unsigned long error) {
  return ERR_GET_LIB(error) == ERR_LIB_SSL && ERR_GET_REASON(error) == SSL_R_UNEXPECTED_EOF_WHILE_READING;
}

// For receiving, a BIO of the kind that knows nothing of kernel TLS: the kernel could not follow a peer that
// changes its keys.
bool attach(SSL* ssl, int fd) {
  BIO* const sending = ::BIO_new_socket(fd, BIO_NOCLOSE);
  BIO* const receiving = ::BIO_new_fd(fd, BIO_NOCLOSE);
  if (sending != nullptr) ::SSL_set0_wbio(ssl, sending);
  if (receiving != nullptr) ::SSL_set0_rbio(ssl, receiving);
  return sending != nullptr && receiving != nullptr;
}

}  // namespace

struct TlsSession::State {
  OwnedSsl ssl;
};

TlsSession::TlsSession(const TlsCredentials& credentials, int fd, Side side)
    : state_(std::make_unique<State>()),
      fd_(fd),
      side_(side),
      records_per_key_(credentials.options().records_per_key) {
  state_->ssl.reset(::SSL_new(credentials.context()));
  SSL* const ssl = state_->ssl.get();
  if (ssl == nullptr || !attach(ssl, fd))
    throw Error("ERR_COLO_LINK", 0, "setting TLS up: " + openssl_reason());
  SSL_set_app_data(ssl, this);
  if (side == Side::client) {
    ::SSL_set_connect_state(ssl);
  } else {
    ::SSL_set_accept_state(ssl);
    std::copy(kGreeting.begin(), kGreeting.end(), greeting_.begin());
  }
}

TlsSession::~TlsSession() = default;

std::string TlsSession::handshake_failure(int error, int sys_errno) const {
  if (!refusal_.empty()) {
    ::ERR_clear_error();
    return refusal_;
  }
  const unsigned long queued = ::ERR_peek_error();
  const int reason = ERR_GET_LIB(queued) == ERR_LIB_SSL ? ERR_GET_REASON(queued) : 0;
  if (reason == SSL_R_WRONG_VERSION_NUMBER || reason == SSL_R_HTTP_REQUEST) {
    ::ERR_clear_error();
    return "the peer doesn't speak TLS: was it started with --insecure?";
  }
  if (is_end_of_stream(queued) || error == SSL_ERROR_ZERO_RETURN ||
      (error == SSL_ERROR_SYSCALL && sys_errno == 0)) {
    ::ERR_clear_error();
    return "the peer closed the connection during the TLS handshake; its agent's log may say why";
  }
  if (error == SSL_ERROR_SYSCALL) return std::string("during the TLS handshake: ") + std::strerror(sys_errno);
  return "the TLS handshake failed: " + library_reason();
}

short TlsSession::handshake() {
  SSL* const ssl = state_->ssl.get();
  if (!shaken_) {
    ::ERR_clear_error();
    errno = 0;
    const int done = ::SSL_do_handshake(ssl);
    if (done != 1) {
      const int sys_errno = errno, error = ::SSL_get_error(ssl, done);
      if (error == SSL_ERROR_WANT_READ) return POLLIN;
      if (error == SSL_ERROR_WANT_WRITE) return POLLOUT;
      throw Error("ERR_COLO_LINK", 0, handshake_failure(error, sys_errno));
    }
    shaken_ = true;
  }
  return greet();
}

short TlsSession::greet() {
  SSL* const ssl = state_->ssl.get();
  while (greeting_done_ < kGreetingBytes) {
    ::ERR_clear_error();
    errno = 0;
    char* const at = greeting_.data() + greeting_done_;
    const int left = static_cast<int>(kGreetingBytes - greeting_done_);
    const int done = side_ == Side::server ? ::SSL_write(ssl, at, left) : ::SSL_read(ssl, at, left);
    if (done <= 0) {
      const int sys_errno = errno, error = ::SSL_get_error(ssl, done);
      if (error == SSL_ERROR_WANT_READ) return POLLIN;
      if (error == SSL_ERROR_WANT_WRITE) return POLLOUT;
      throw Error("ERR_COLO_LINK", 0, handshake_failure(error, sys_errno));
    }
    greeting_done_ += static_cast<std::size_t>(done);
  }
  if (std::string_view(greeting_.data(), kGreetingBytes) != kGreeting)
    throw Error("ERR_COLO_LINK", 0, "the peer speaks TLS, but is no colo-agent of this version");
  // So that recv() hears of what carries no data, and can count it.
  ::SSL_clear_mode(ssl, SSL_MODE_AUTO_RETRY);
  return 0;
}

void TlsSession::handshake_within(int timeout_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  while (const short events = handshake()) {
    const auto left =
        std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd waited = {fd_, events, 0};
    const int ready = left.count() <= 0 ? 0 : ::poll(&waited, 1, static_cast<int>(left.count()));
    if (ready == 0)
      throw Error("ERR_COLO_LINK", 0,
                  "the TLS handshake didn't end within " + std::to_string(timeout_ms) + " ms");
  }
}

// After a call that returned no bytes: as the plain call would have told it.
ssize_t TlsSession::failed(int returned) {
  const int sys_errno = errno, error = ::SSL_get_error(state_->ssl.get(), returned);
  switch (error) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
      wanted_ = error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT;
      errno = EAGAIN;
      return -1;
    case SSL_ERROR_ZERO_RETURN:
      return 0;
    case SSL_ERROR_SYSCALL:
      ::ERR_clear_error();
      errno = sys_errno == 0 ? EPIPE : sys_errno;
      return -1;
    default:
      // The stream says by itself where it ends: one that is cut off is noticed by its own rules.
      if (is_end_of_stream(::ERR_peek_error())) {
        ::ERR_clear_error();
        return 0;
      }
      throw Error("ERR_COLO_LINK", 0, "TLS: " + library_reason());
  }
}

ssize_t TlsSession::sendmsg(int fd, const msghdr* message, int) {
  COLO_ASSERT(fd == fd_);
  const std::span pieces(message->msg_iov, message->msg_iovlen);
  const void* from = record_.data();
  std::size_t length = 0;
  if (!pieces.empty() && pieces[0].iov_len >= kRecordBytesMax) {
    from = pieces[0].iov_base;
    length = kRecordBytesMax;
  } else {
    // A call that couldn't go on is repeated with the same pieces, so that the record is the same again, as
    // OpenSSL wants it.
    for (const iovec& piece : pieces) {
      const std::size_t part = std::min(piece.iov_len, kRecordBytesMax - length);
      std::memcpy(record_.data() + length, piece.iov_base, part);
      length += part;
    }
  }
  ::ERR_clear_error();
  errno = 0;
  const int sent = ::SSL_write(state_->ssl.get(), from, static_cast<int>(length));
  if (sent > 0) {
    count_sent_record();
    return sent;
  }
  const ssize_t result = failed(sent);
  if (result == 0) {
    errno = EPIPE;
    return -1;
  }
  return result;
}

// Between two records, where OpenSSL takes the wish for a new key: it goes out in front of the next.
void TlsSession::count_sent_record() {
  SSL* const ssl = state_->ssl.get();
  if (++records_sent_ < records_per_key_ || BIO_get_ktls_send(::SSL_get_wbio(ssl)) != 0) return;
  if (::SSL_key_update(ssl, SSL_KEY_UPDATE_NOT_REQUESTED) != 1)
    throw Error("ERR_COLO_LINK", 0, "TLS: changing the key: " + openssl_reason());
  records_sent_ = 0;
}

ssize_t TlsSession::recv(int fd, void* into, std::size_t length, int) {
  COLO_ASSERT(fd == fd_);
  SSL* const ssl = state_->ssl.get();
  const int most = static_cast<int>(std::min<std::size_t>(length, 1u << 30));
  for (;;) {
    ::ERR_clear_error();
    errno = 0;
    const std::uint64_t before = ::BIO_number_read(::SSL_get_rbio(ssl));
    const int got = ::SSL_read(ssl, into, most);
    if (got > 0) {
      bytes_received_ += static_cast<std::uint64_t>(got);
      return got;
    }
    // It wants more without having been told that there is none: it has met messages of TLS itself, and
    // nothing behind them.
    const bool met_messages = ::SSL_get_error(ssl, got) == SSL_ERROR_WANT_READ && errno == 0 &&
                              ::BIO_number_read(::SSL_get_rbio(ssl)) != before;
    if (!met_messages) return failed(got);
    // A peer that changes its keys sends one now and then. One that sends them without an end must not hold
    // this thread, which may be a real-time one.
    if (++empty_reads_ > kEmptyReadsMax + bytes_received_ / kBytesForEmptyRead)
      throw Error("ERR_COLO_LINK", 0, "TLS: the peer sends messages without data, again and again");
  }
}

int TlsSession::poll(pollfd* fds, nfds_t count, int timeout_ms) {
  COLO_ASSERT(count == 1 && fds[0].fd == fd_);
  // TLS may have to receive in order to send, and the other way round.
  if (wanted_ != 0) fds[0].events = std::exchange(wanted_, 0);
  return SocketCalls::poll(fds, count, timeout_ms);
}

void TlsSession::end_sending() {
  ::SSL_shutdown(state_->ssl.get());
  ::ERR_clear_error();
}

TlsInfo TlsSession::info() const {
  SSL* const ssl = state_->ssl.get();
  TlsInfo info;
  info.cipher = std::string(::SSL_get_version(ssl)) + ", " + ::SSL_get_cipher_name(ssl);
  info.kernel_sends = BIO_get_ktls_send(::SSL_get_wbio(ssl)) != 0;
  if (X509* const certificate = ::SSL_get0_peer_certificate(ssl)) {
    info.peer = names_of(certificate);
    info.fingerprint = fingerprint_of(certificate);
    info.expires_s = expiry_s_of(certificate);
  }
  return info;
}

}  // namespace colo
