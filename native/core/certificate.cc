#include "certificate.h"

#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <array>
#include <ctime>
#include <string_view>
#include <utility>

#include "error.h"
#include "openssl_owned.h"

namespace colo {
namespace {

constexpr std::size_t kSerialBytes = 16;
// Who is refused says by his certificate what stands in our log.
constexpr std::size_t kNamesBytesMax = 256;

void require(bool done, const char* what) {
  if (!done) throw Error("ERR_COLO_CREDENTIALS", 0, std::string(what) + ": " + openssl_reason());
}

std::string text_of(const ASN1_STRING* string) {
  return {reinterpret_cast<const char*>(::ASN1_STRING_get0_data(string)),
          static_cast<std::size_t>(::ASN1_STRING_length(string))};
}

std::string for_people(std::string text) {
  for (char& each : text) {
    if (each < ' ' || each > '~') each = '?';
  }
  if (text.size() > kNamesBytesMax) text.replace(kNamesBytesMax, std::string::npos, "...");
  return text;
}

OwnedNames alternative_names_of(X509* certificate) {
  return OwnedNames(
      static_cast<GENERAL_NAMES*>(::X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
}

void add_name(GENERAL_NAMES* names, int type, const std::string& text) {
  GENERAL_NAME* const name = ::GENERAL_NAME_new();
  ASN1_IA5STRING* const value = ::ASN1_IA5STRING_new();
  require(name != nullptr && value != nullptr &&
              ::ASN1_STRING_set(value, text.data(), static_cast<int>(text.size())) == 1,
          "naming the certificate");
  ::GENERAL_NAME_set0_value(name, type, value);
  require(sk_GENERAL_NAME_push(names, name) > 0, "naming the certificate");
}

void set_names(X509* certificate, const CertificateRequest& request) {
  X509_NAME* const subject = ::X509_get_subject_name(certificate);
  require(::X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8,
                                       reinterpret_cast<const unsigned char*>(request.common_name.data()),
                                       static_cast<int>(request.common_name.size()), -1, 0) == 1 &&
              ::X509_set_issuer_name(certificate, subject) == 1,
          "naming the certificate");
  const OwnedNames names(::GENERAL_NAMES_new());
  for (const std::string& vm : request.vms) add_name(names.get(), GEN_URI, kVmUriPrefix + vm);
  require(::X509_add1_ext_i2d(certificate, NID_subject_alt_name, names.get(), 0, X509V3_ADD_DEFAULT) == 1,
          "naming the certificate");
}

void set_serial(X509* certificate) {
  std::array<unsigned char, kSerialBytes> serial;
  require(::RAND_bytes(serial.data(), serial.size()) == 1, "choosing a serial number");
  serial[0] &= 0x7f;  // a serial number isn't negative
  BIGNUM* const number = ::BN_bin2bn(serial.data(), serial.size(), nullptr);
  const bool set =
      number != nullptr && ::BN_to_ASN1_INTEGER(number, ::X509_get_serialNumber(certificate)) != nullptr;
  ::BN_free(number);
  require(set, "choosing a serial number");
}

void set_not_a_ca(X509* certificate) {
  BASIC_CONSTRAINTS* const constraints = ::BASIC_CONSTRAINTS_new();
  const bool set = constraints != nullptr && ::X509_add1_ext_i2d(certificate, NID_basic_constraints,
                                                                 constraints, 1, X509V3_ADD_DEFAULT) == 1;
  ::BASIC_CONSTRAINTS_free(constraints);
  require(set, "restricting the certificate");
}

template <typename Write>
std::string pem_of(const Write& write) {
  const OwnedBio memory(::BIO_new(::BIO_s_mem()));
  require(memory && write(memory.get()) == 1, "writing PEM");
  char* data = nullptr;
  const long length = BIO_get_mem_data(memory.get(), &data);
  return {data, static_cast<std::size_t>(length)};
}

std::tm calendar_of(const ASN1_TIME* time) {
  std::tm result = {};
  require(::ASN1_TIME_to_tm(time, &result) == 1, "reading a certificate's time");
  return result;
}

}  // namespace

KeyAndCertificate make_self_signed(const CertificateRequest& request) {
  const OwnedKey key(::EVP_PKEY_Q_keygen(nullptr, nullptr, "EC", "P-256"));
  require(key != nullptr, "making a key");
  const OwnedCertificate certificate(::X509_new());
  require(certificate && ::X509_set_version(certificate.get(), X509_VERSION_3) == 1, "making a certificate");
  set_serial(certificate.get());
  set_names(certificate.get(), request);
  set_not_a_ca(certificate.get());
  require(::ASN1_TIME_set(::X509_getm_notBefore(certificate.get()), request.valid_from_s) != nullptr &&
              ::ASN1_TIME_set(::X509_getm_notAfter(certificate.get()), request.valid_until_s) != nullptr &&
              ::X509_set_pubkey(certificate.get(), key.get()) == 1 &&
              ::X509_sign(certificate.get(), key.get(), ::EVP_sha256()) > 0,
          "signing the certificate");
  return {pem_of([&](BIO* out) {
            return ::PEM_write_bio_PrivateKey(out, key.get(), nullptr, nullptr, 0, nullptr, nullptr);
          }),
          pem_of([&](BIO* out) { return ::PEM_write_bio_X509(out, certificate.get()); })};
}

bool may_issue(std::span<const std::uint8_t> der) {
  const std::uint8_t* bytes = der.data();
  const OwnedCertificate certificate(::d2i_X509(nullptr, &bytes, static_cast<long>(der.size())));
  require(certificate != nullptr, "reading a certificate");
  return ::X509_check_ca(certificate.get()) != 0;
}

std::vector<std::string> vms_of(X509* certificate) {
  std::vector<std::string> vms;
  const OwnedNames names = alternative_names_of(certificate);
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    const std::string uri = text_of(name->d.uniformResourceIdentifier);
    if (uri.starts_with(kVmUriPrefix)) vms.push_back(uri.substr(std::string_view(kVmUriPrefix).size()));
  }
  return vms;
}

std::string names_of(X509* certificate) {
  std::string text;
  const auto add = [&](const std::string& name) { text += (text.empty() ? "" : ", ") + name; };
  for (const std::string& vm : vms_of(certificate)) add(vm == "*" ? "every VM" : "VM " + vm);
  const OwnedNames names = alternative_names_of(certificate);
  for (int i = 0; names && i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type == GEN_DNS) add("host " + text_of(name->d.dNSName));
  }
  if (!text.empty()) return for_people(std::move(text));
  std::array<char, kNamesBytesMax> subject;
  ::X509_NAME_oneline(::X509_get_subject_name(certificate), subject.data(), subject.size());
  return subject.data();
}

std::string fingerprint_of(X509* certificate) {
  std::array<unsigned char, EVP_MAX_MD_SIZE> digest;
  unsigned length = 0;
  require(::X509_digest(certificate, ::EVP_sha256(), digest.data(), &length) == 1, "hashing a certificate");
  constexpr const char* kDigits = "0123456789abcdef";
  std::string hex;
  for (unsigned i = 0; i < length; ++i) {
    hex += kDigits[digest[i] >> 4];
    hex += kDigits[digest[i] & 15];
  }
  return hex;
}

std::string expiry_of(X509* certificate) {
  const std::tm time = calendar_of(::X509_get0_notAfter(certificate));
  std::array<char, 64> text;
  return {text.data(), std::strftime(text.data(), text.size(), "%Y-%m-%d %H:%M:%S UTC", &time)};
}

std::int64_t expiry_s_of(X509* certificate) {
  std::tm time = calendar_of(::X509_get0_notAfter(certificate));
  return ::timegm(&time);
}

}  // namespace colo
