// Keys, certificates and CAs of a test's own.
#pragma once

#include <gtest/gtest.h>
#include <openssl/pem.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "../core/certificate.h"
#include "../core/openssl_owned.h"
#include "../core/tls_credentials.h"
#include "../core/unique_fd.h"

namespace colo::testing {

inline constexpr std::int64_t kDayS = 86400;

inline KeyAndCertificate self_signed(const std::string& vm = "*", std::int64_t from_days = -1,
                                     std::int64_t until_days = 1) {
  const std::int64_t now = ::time(nullptr);
  return make_self_signed({"test", {vm}, now + from_days * kDayS, now + until_days * kDayS});
}

inline OwnedCertificate certificate_in(const std::string& pem) {
  const OwnedBio memory(::BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  return OwnedCertificate(::PEM_read_bio_X509(memory.get(), nullptr, nullptr, nullptr));
}

// Issues certificates. Its own becomes a CA's, or stays as it is: an intermediate's, or one by which nothing
// may be issued.
class Issuer {
 public:
  explicit Issuer(const KeyAndCertificate& own, bool is_ca = true)
      : certificate_(certificate_in(own.certificate_pem)) {
    const OwnedBio memory(::BIO_new_mem_buf(own.key_pem.data(), static_cast<int>(own.key_pem.size())));
    key_.reset(::PEM_read_bio_PrivateKey(memory.get(), nullptr, nullptr, nullptr));
    if (is_ca) become_ca();
  }

  std::string certificate_pem() const { return pem_of(certificate_.get()); }

  // `names` as openssl.cnf has them: "URI:colo-agent://vm/web1,DNS:b.example"; empty: none. So `usage`:
  // "clientAuth".
  KeyAndCertificate issue(const std::string& names, const std::string& usage = "") const {
    return sign(self_signed(), [&](X509* certificate) {
      replace(certificate, NID_subject_alt_name, names);
      replace(certificate, NID_ext_key_usage, usage);
    });
  }
  // A certificate for one who issues, too, if the constraints say so.
  KeyAndCertificate issue_ca(const std::string& constraints = "critical,CA:TRUE") const {
    return sign(self_signed(), [&](X509* certificate) {
      name(certificate);
      replace(certificate, NID_subject_alt_name, "");
      replace(certificate, NID_basic_constraints, constraints);
    });
  }

 private:
  static std::string pem_of(X509* certificate) {
    const OwnedBio memory(::BIO_new(::BIO_s_mem()));
    ::PEM_write_bio_X509(memory.get(), certificate);
    char* data = nullptr;
    const long length = BIO_get_mem_data(memory.get(), &data);
    return {data, static_cast<std::size_t>(length)};
  }
  template <typename Change>
  KeyAndCertificate sign(const KeyAndCertificate& plain, const Change& change) const {
    const OwnedCertificate certificate = certificate_in(plain.certificate_pem);
    ::X509_set_issuer_name(certificate.get(), ::X509_get_subject_name(certificate_.get()));
    change(certificate.get());
    EXPECT_GT(::X509_sign(certificate.get(), key_.get(), ::EVP_sha256()), 0);
    return {plain.key_pem, pem_of(certificate.get())};
  }
  static void name(X509* certificate) {
    static int cas = 0;
    const std::string name = "CA " + std::to_string(++cas);
    ::X509_NAME_add_entry_by_txt(::X509_get_subject_name(certificate), "O", MBSTRING_UTF8,
                                 reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  }
  // Empty: removes it.
  static void replace(X509* certificate, int nid, const std::string& value) {
    const int at = ::X509_get_ext_by_NID(certificate, nid, -1);
    if (at >= 0) ::X509_EXTENSION_free(::X509_delete_ext(certificate, at));
    if (value.empty()) return;
    X509_EXTENSION* const extension = ::X509V3_EXT_conf_nid(nullptr, nullptr, nid, value.c_str());
    ::X509_add_ext(certificate, extension, -1);
    ::X509_EXTENSION_free(extension);
  }
  void become_ca() {
    name(certificate_.get());
    ::X509_set_issuer_name(certificate_.get(), ::X509_get_subject_name(certificate_.get()));
    replace(certificate_.get(), NID_basic_constraints, "critical,CA:TRUE");
    EXPECT_GT(::X509_sign(certificate_.get(), key_.get(), ::EVP_sha256()), 0);
  }

  OwnedKey key_;
  OwnedCertificate certificate_;
};

// A folder with a host's three files.
class HostFiles {
 public:
  HostFiles(const KeyAndCertificate& own, const std::string& trusted_pem) {
    if (::mkdtemp(folder_.data()) == nullptr) std::abort();
    write("certificate", own.certificate_pem);
    write("key", own.key_pem);
    write("trusted", trusted_pem);
    ::chmod(file("key").c_str(), 0600);
  }
  HostFiles(const HostFiles&) = delete;
  HostFiles& operator=(const HostFiles&) = delete;
  ~HostFiles() { std::filesystem::remove_all(folder_); }

  std::string file(const std::string& name) const { return folder_ + "/" + name; }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(file(name)) << content;
  }
  std::shared_ptr<const TlsCredentials> open(const std::string& vm = "web1",
                                             const std::string& peer_name = "") const {
    return std::make_shared<TlsCredentials>(options(vm, peer_name));
  }
  TlsOptions options(const std::string& vm = "web1", const std::string& peer_name = "") const {
    return {file("certificate"), file("key"), file("trusted"), vm, peer_name};
  }

 private:
  std::string folder_ = std::filesystem::temp_directory_path() / "colo-tls-XXXXXX";
};

inline std::shared_ptr<const TlsCredentials> credentials(const KeyAndCertificate& own,
                                                         const std::string& trusted_pem,
                                                         const std::string& vm = "web1",
                                                         const std::string& peer_name = "") {
  return HostFiles(own, trusted_pem).open(vm, peer_name);
}

// Two hosts that `colo-agent pair` has paired.
struct PairedHosts {
  KeyAndCertificate a = self_signed(), b = self_signed();
  std::shared_ptr<const TlsCredentials> client = credentials(a, b.certificate_pem);
  std::shared_ptr<const TlsCredentials> server = credentials(b, a.certificate_pem);
};

// Two ends of a non-blocking socket, with small buffers: nothing of size goes at once.
inline std::pair<UniqueFd, UniqueFd> narrow_socket_pair() {
  int fds[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) std::abort();
  const int small = 4096;
  for (const int fd : fds) ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  return {UniqueFd(fds[0]), UniqueFd(fds[1])};
}

}  // namespace colo::testing
