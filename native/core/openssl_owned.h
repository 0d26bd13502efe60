// Owners of what OpenSSL allocates, and its errors as text.
#pragma once

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>
#include <string>

namespace colo {

template <auto release>
struct OpensslRelease {
  template <typename T>
  void operator()(T* object) const {
    release(object);
  }
};
using OwnedBio = std::unique_ptr<BIO, OpensslRelease<&::BIO_free_all>>;
using OwnedKey = std::unique_ptr<EVP_PKEY, OpensslRelease<&::EVP_PKEY_free>>;
using OwnedCertificate = std::unique_ptr<X509, OpensslRelease<&::X509_free>>;
using OwnedNames = std::unique_ptr<GENERAL_NAMES, OpensslRelease<&::GENERAL_NAMES_free>>;
using OwnedContext = std::unique_ptr<SSL_CTX, OpensslRelease<&::SSL_CTX_free>>;
using OwnedSsl = std::unique_ptr<SSL, OpensslRelease<&::SSL_free>>;

// Takes what OpenSSL has left of errors in this thread: nobody else's next call may stumble over it (Node.js
// uses the same library). The innermost, in words.
inline std::string openssl_reason() {
  const unsigned long error = ::ERR_peek_error();
  const char* const reason = error == 0 ? nullptr : ::ERR_reason_error_string(error);
  std::string text = reason != nullptr ? reason : "OpenSSL gives no reason";
  ::ERR_clear_error();
  return text;
}

}  // namespace colo
