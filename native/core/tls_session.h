// TLS on one socket, behind the seam of socket_io.h: what sends and receives on a plain socket does so here.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>

#include "socket_io.h"
#include "tls_credentials.h"

struct ssl_st;

namespace colo {

struct TlsInfo {
  std::string cipher;             // "TLSv1.3, TLS_AES_128_GCM_SHA256"
  bool kernel_sends = false;      // kernel TLS encrypts what we send
  std::string peer, fingerprint;  // what the peer's certificate is for, and its SHA-256 (certificate.h)
  std::int64_t expires_s = 0;     // the end of its time, since 1970
};

// Used by one thread at a time, in both directions. Another thread ends what it does by shutdown(2) on the
// socket. What goes wrong with TLS itself is thrown as ERR_COLO_LINK; what goes wrong with the socket is
// returned as the plain calls do.
//
// A session may last for months: the keys change long before AES-GCM has encrypted more with them than it
// should (RFC 8446, 5.5: 2^24.5 records). Where the kernel encrypts they can't: no kernel before Linux 6.14
// takes new ones, and OpenSSL doesn't notice. What we receive is therefore never decrypted by the kernel, so
// that the peer's may change.
class TlsSession : public SocketCalls {
 public:
  enum class Side { client, server };

  // `fd` is non-blocking, stays the caller's and open as long as the session lives. The credentials needn't.
  TlsSession(const TlsCredentials& credentials, int fd, Side side);
  ~TlsSession() override;

  // Goes on with the handshake. Returns 0 when it has come to its end, or POLLIN or POLLOUT, for which the
  // caller waits before the next call. Its end is the server's greeting of 8 bytes (docs/protocol.md): by it
  // the client knows that its own certificate was accepted. Throws ERR_COLO_LINK with the reason: ours for
  // refusing the peer, or the peer's for refusing us.
  short handshake();
  // The same, waiting at most `timeout_ms` in all.
  void handshake_within(int timeout_ms);

  // After the handshake, for `fd` alone. Of a message's pieces at most a record's worth (16 KiB) goes at
  // once.
  ssize_t sendmsg(int fd, const msghdr* message, int flags) override;
  ssize_t recv(int fd, void* into, std::size_t length, int flags) override;
  int poll(pollfd* fds, nfds_t count, int timeout_ms) override;
  // For who waits by other means than poll(): POLLIN or POLLOUT, what the call just made couldn't go on
  // without. Bytes that came with others and that recv() hasn't given out yet raise no event: before anybody
  // waits, recv() must have said EAGAIN.
  short waits_for() const { return wanted_; }

  // Tells the peer that nothing more will come, as far as the socket takes it at once.
  void end_sending();

  TlsInfo info() const;

  // From the check of the peer's certificate, inside handshake().
  void refuse_peer(const std::string& why) { refusal_ = why; }

 private:
  static constexpr std::size_t kRecordBytesMax = 16384;
  static constexpr std::size_t kGreetingBytes = 8;
  // TLS messages without data that are borne: so many, and one more for so much data.
  static constexpr std::uint64_t kEmptyReadsMax = 64, kBytesForEmptyRead = 4096;

  short greet();
  void count_sent_record();
  ssize_t failed(int returned);
  std::string handshake_failure(int error, int sys_errno) const;

  struct State;
  const std::unique_ptr<State> state_;
  const int fd_;
  const Side side_;
  bool shaken_ = false;
  std::array<char, kGreetingBytes> greeting_ = {};
  std::size_t greeting_done_ = 0;
  short wanted_ = 0;  // for which the last call that couldn't go on waits
  const std::uint64_t records_per_key_;
  std::uint64_t records_sent_ = 0;  // with the present key
  std::uint64_t empty_reads_ = 0, bytes_received_ = 0;
  std::string refusal_;
  std::array<std::byte, kRecordBytesMax> record_;
};

}  // namespace colo
