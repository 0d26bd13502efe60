// What certificates say, and the self-signed ones that `colo-agent pair` makes (docs/security.md).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

struct x509_st;

namespace colo {

// A certificate says by a URI in its subjectAltName for which VM its owner may speak; "*": for all.
inline constexpr const char* kVmUriPrefix = "colo-agent://vm/";

struct CertificateRequest {
  std::string common_name;                           // for people; nothing is decided by it
  std::vector<std::string> vms;                      // names, or "*"
  std::int64_t valid_from_s = 0, valid_until_s = 0;  // since 1970
};
struct KeyAndCertificate {
  std::string key_pem, certificate_pem;
};
// A new key (ECDSA, P-256) and a certificate that it has signed itself. It is no CA: who trusts it trusts its
// owner and nobody else. Throws ERR_COLO_CREDENTIALS.
KeyAndCertificate make_self_signed(const CertificateRequest& request);

// Whether a chain may lead over it, as OpenSSL sees that: also without basicConstraints, by its keyUsage
// alone or by its age (OpenSSL: X509_check_ca(3)). `der`: the certificate. Throws ERR_COLO_CREDENTIALS when
// it isn't one.
bool may_issue(std::span<const std::uint8_t> der);

std::vector<std::string> vms_of(x509_st* certificate);
// What the certificate is for, as people read it: its VMs and host names, or its subject where it names
// neither. Printable ASCII, and not much of it, whatever the certificate holds.
std::string names_of(x509_st* certificate);
// SHA-256 over the whole certificate, 64 hex digits.
std::string fingerprint_of(x509_st* certificate);
// "2026-11-27 03:12:10 UTC"
std::string expiry_of(x509_st* certificate);
std::int64_t expiry_s_of(x509_st* certificate);

}  // namespace colo
