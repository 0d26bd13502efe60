// Who this agent is to its peers, and whom it believes: one for the whole agent.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

struct ssl_ctx_st;

namespace colo {

struct TlsOptions {
  std::string certificate_file;  // PEM: ours first, then what leads from it to its CA
  std::string key_file;          // PEM, readable by its owner alone
  // PEM: the peers' own certificates, or CAs, or both. Who can't show a valid chain to one of them is
  // refused.
  std::string trusted_file;
  std::string vm;         // a peer's certificate must be for this VM (kVmUriPrefix), ...
  std::string peer_name;  // ... or, when this isn't empty, for the host of this name or address
  // After so many records of 16 KiB at most, what we send gets a new key.
  std::uint64_t records_per_key = 1u << 24;
};

// May be used by any number of threads. TLS 1.3 and nothing older, no resumption, no early data: each
// connection proves who it is.
class TlsCredentials {
 public:
  // Reads the files. Throws ERR_COLO_CREDENTIALS, which names the file, what is wrong and what to do. From
  // here on the process ignores SIGPIPE, as Node.js does: OpenSSL writes with write(2).
  explicit TlsCredentials(const TlsOptions& options);
  ~TlsCredentials();

  struct Own {
    std::string names, fingerprint;  // certificate.h
    std::int64_t expires_s = 0;      // since 1970
  };
  Own own() const;
  const TlsOptions& options() const;
  ssl_ctx_st* context() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace colo
