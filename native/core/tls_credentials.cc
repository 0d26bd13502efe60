#include "tls_credentials.h"

#include <fcntl.h>
#include <openssl/pem.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <vector>

#include "certificate.h"
#include "error.h"
#include "openssl_owned.h"
#include "tls_session.h"
#include "unique_fd.h"

namespace colo {
namespace {

// The first is the fastest where the processor has AES, which is everywhere that KVM is; kernel TLS has all.
constexpr const char* kCiphers = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
constexpr long kPeerChainBytesMax = 32 << 10;
constexpr std::size_t kReadAheadBytes = 256u << 10;  // one system call brings many records
constexpr std::size_t kFileBytesMax = 1u << 20;

[[noreturn]] void fail(const std::string& what) { throw Error("ERR_COLO_CREDENTIALS", 0, what); }

enum class FileKind { certificate, trusted, key };

// Who can change the key or the list of those whom we believe is believed.
void require_unforgeable(const struct stat& status, const std::string& path, FileKind kind) {
  if (kind == FileKind::certificate) return;
  const std::string what = kind == FileKind::key ? "the key " + path : path;
  if (kind == FileKind::key && (status.st_mode & 077) != 0)
    fail(what + " can be read by others than its owner: chmod 600 it, or make a new one");
  if ((status.st_mode & 022) != 0)
    fail(what + " says whom this agent believes, and can be changed by others than its owner: chmod go-w it");
  if (status.st_uid != 0 && status.st_uid != ::geteuid())
    fail(what + " belongs to user " + std::to_string(status.st_uid) +
         ", who could change it: it must be root's, or the agent's own");
}

// Looks at the file that it has open, so that nobody exchanges it between the look and the reading.
std::string read_file(const std::string& path, FileKind kind) {
  // Without O_NONBLOCK, a pipe of that name would be waited for.
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) {
    throw_errno("ERR_COLO_CREDENTIALS",
                "reading " + path + " (`colo-agent pair` makes it, docs/security.md has other ways)");
  }
  struct stat status = {};
  if (::fstat(fd.get(), &status) != 0) throw_errno("ERR_COLO_CREDENTIALS", "looking at " + path);
  if (!S_ISREG(status.st_mode) || static_cast<std::size_t>(status.st_size) > kFileBytesMax)
    fail(path + " is not a PEM file of at most 1 MiB");
  require_unforgeable(status, path, kind);
  std::string content(static_cast<std::size_t>(status.st_size), '\0');
  const ssize_t got = ::pread(fd.get(), content.data(), content.size(), 0);
  if (got < 0) throw_errno("ERR_COLO_CREDENTIALS", "reading " + path);
  content.resize(static_cast<std::size_t>(got));
  return content;
}

OwnedBio memory_of(const std::string& content) {
  return OwnedBio(::BIO_new_mem_buf(content.data(), static_cast<int>(content.size())));
}

std::vector<OwnedCertificate> certificates_in(const std::string& path, FileKind kind) {
  const std::string content = read_file(path, kind);
  const OwnedBio memory = memory_of(content);
  std::vector<OwnedCertificate> certificates;
  while (X509* const each = ::PEM_read_bio_X509(memory.get(), nullptr, nullptr, nullptr))
    certificates.emplace_back(each);
  const unsigned long error = ::ERR_peek_last_error();
  // "No start line" is how the end of the file is told.
  const bool at_end = ERR_GET_LIB(error) == ERR_LIB_PEM && ERR_GET_REASON(error) == PEM_R_NO_START_LINE;
  const std::string reason = openssl_reason();
  if (!at_end) fail(path + " holds a certificate that can't be read: " + reason);
  if (certificates.empty()) fail(path + " holds no certificate in PEM form");
  return certificates;
}

// An encrypted key would ask for its password on the terminal.
int no_password(char*, int, int, void*) { return 0; }

void use_own(SSL_CTX* context, const TlsOptions& options) {
  const std::vector<OwnedCertificate> chain =
      certificates_in(options.certificate_file, FileKind::certificate);
  if (::SSL_CTX_use_certificate(context, chain[0].get()) != 1)
    fail("the certificate " + options.certificate_file + " can't be used: " + openssl_reason());
  for (std::size_t i = 1; i < chain.size(); ++i) {
    if (::SSL_CTX_add1_chain_cert(context, chain[i].get()) != 1)
      fail("a certificate in " + options.certificate_file + " can't be used: " + openssl_reason());
  }
  std::string content = read_file(options.key_file, FileKind::key);
  const OwnedKey key(::PEM_read_bio_PrivateKey(memory_of(content).get(), nullptr, &no_password, nullptr));
  ::OPENSSL_cleanse(content.data(), content.size());
  if (!key)
    fail("the key " + options.key_file +
         " can't be read (it must be PEM, without a password): " + openssl_reason());
  if (::SSL_CTX_use_PrivateKey(context, key.get()) != 1 || ::SSL_CTX_check_private_key(context) != 1) {
    fail("the key " + options.key_file + " is not the one of the certificate " + options.certificate_file +
         ": " + openssl_reason());
  }
}

void use_trusted(SSL_CTX* context, const std::string& path) {
  X509_STORE* const store = ::SSL_CTX_get_cert_store(context);
  for (const OwnedCertificate& each : certificates_in(path, FileKind::trusted)) {
    if (::X509_STORE_add_cert(store, each.get()) != 1)
      fail("a certificate in " + path + " can't be used: " + openssl_reason());
  }
  // So that a peer's own certificate can be trusted without its CA being so.
  ::X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);
}

bool is_for_host(X509* certificate, const std::string& name) {
  constexpr unsigned kFlags = X509_CHECK_FLAG_NEVER_CHECK_SUBJECT | X509_CHECK_FLAG_NO_WILDCARDS;
  return ::X509_check_host(certificate, name.data(), name.size(), kFlags, nullptr) == 1 ||
         ::X509_check_ip_asc(certificate, name.c_str(), 0) == 1;
}

// Empty, or why a valid certificate is not the peer's that we want.
std::string wrong_peer(X509* certificate, const TlsOptions& options) {
  const std::vector<std::string> vms = vms_of(certificate);
  const bool is_for_vm = std::any_of(
      vms.begin(), vms.end(), [&](const std::string& each) { return each == "*" || each == options.vm; });
  const std::string found = "the peer's certificate is for " + names_of(certificate) + ", not for ";
  if (!options.peer_name.empty() && !is_for_host(certificate, options.peer_name))
    return found + "the host " + options.peer_name;
  // A certificate that names VMs is for these alone, whatever host it is for.
  if (!is_for_vm && (options.peer_name.empty() || !vms.empty())) return found + "the VM " + options.vm;
  return {};
}

std::string refusal(X509_STORE_CTX* store, const TlsOptions& options) {
  X509* const certificate = ::X509_STORE_CTX_get_current_cert(store);
  const int error = ::X509_STORE_CTX_get_error(store);
  const std::string whose = certificate == nullptr ? "the peer's certificate"
                                                   : "the peer's certificate (" + names_of(certificate) + ")";
  switch (error) {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return whose + " has expired" + (certificate == nullptr ? "" : ": " + expiry_of(certificate)) +
             "; pair the hosts again or renew it, and look at both hosts' clocks";
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return whose + " is not valid yet; look at both hosts' clocks";
    case X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
      return whose + " is self-signed and not in " + options.trusted_file + ": the hosts are not paired";
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT:
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY:
    case X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE:
    case X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN:
    case X509_V_ERR_CERT_SIGNATURE_FAILURE:  // by another CA of the same name
      return whose + " was issued by nobody in " + options.trusted_file;
    default:
      return whose + " is refused: " + ::X509_verify_cert_error_string(error);
  }
}

// In place of OpenSSL's own check, which it calls: what it finds is told in our words, and a valid
// certificate must be the peer's, too.
int verify(X509_STORE_CTX* store, void* options_of_credentials) {
  const auto& options = *static_cast<const TlsOptions*>(options_of_credentials);
  std::string why;
  if (::X509_verify_cert(store) != 1) {
    why = refusal(store, options);
  } else {
    why = wrong_peer(::X509_STORE_CTX_get0_cert(store), options);
    if (why.empty()) return 1;
    ::X509_STORE_CTX_set_error(store, X509_V_ERR_HOSTNAME_MISMATCH);
  }
  auto* const ssl =
      static_cast<SSL*>(::X509_STORE_CTX_get_ex_data(store, ::SSL_get_ex_data_X509_STORE_CTX_idx()));
  static_cast<TlsSession*>(SSL_get_app_data(ssl))->refuse_peer(why);
  return 0;
}

void require_compatible_library() {
  // The addon takes Node.js's own library, whichever that is (docs/security.md).
  if (::OPENSSL_version_major() != OPENSSL_VERSION_MAJOR) {
    fail("this process has OpenSSL " + std::to_string(::OPENSSL_version_major()) +
         ", colo-agent was built for version " + std::to_string(OPENSSL_VERSION_MAJOR) +
         ": build it again for this Node.js");
  }
}

void ignore_broken_pipes() {
  struct sigaction now = {};
  if (::sigaction(SIGPIPE, nullptr, &now) == 0 && now.sa_handler == SIG_DFL) ::signal(SIGPIPE, SIG_IGN);
}

}  // namespace

struct TlsCredentials::State {
  TlsOptions options;
  OwnedContext context;
};

TlsCredentials::TlsCredentials(const TlsOptions& options) : state_(std::make_unique<State>()) {
  require_compatible_library();
  ignore_broken_pipes();
  state_->options = options;
  state_->context.reset(::SSL_CTX_new(::TLS_method()));
  SSL_CTX* const context = state_->context.get();
  if (context == nullptr || ::SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
      ::SSL_CTX_set_ciphersuites(context, kCiphers) != 1)
    fail("setting TLS 1.3 up: " + openssl_reason());
  ::SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION | SSL_OP_ENABLE_KTLS);
  ::SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  ::SSL_CTX_set_num_tickets(context, 0);
  ::SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  ::SSL_CTX_set_read_ahead(context, 1);
  ::SSL_CTX_set_default_read_buffer_len(context, kReadAheadBytes);
  ::SSL_CTX_set_max_cert_list(context, kPeerChainBytesMax);
  ::SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  ::SSL_CTX_set_cert_verify_callback(context, &verify, &state_->options);
  use_own(context, options);
  use_trusted(context, options.trusted_file);
}

TlsCredentials::~TlsCredentials() = default;

TlsCredentials::Own TlsCredentials::own() const {
  X509* const certificate = ::SSL_CTX_get0_certificate(state_->context.get());
  return {names_of(certificate), fingerprint_of(certificate), expiry_s_of(certificate)};
}

const TlsOptions& TlsCredentials::options() const { return state_->options; }

SSL_CTX* TlsCredentials::context() const { return state_->context.get(); }

}  // namespace colo
