#include <memory>
#include <string>

#include "../core/tls_credentials.h"
#include "classes.h"
#include "handle.h"

namespace colo::addon {
namespace {

class TlsCredentialsHandle : public Handle<TlsCredentialsHandle> {
 public:
  static constexpr const char* kName = "TlsCredentials";
  static constexpr napi_type_tag kTag = {0x5c1f7be09d3a4268, 0x9ae47d10b6238cf4};

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, kName, {method<&TlsCredentialsHandle::own>("own"), close_method()});
  }

  explicit TlsCredentialsHandle(const Napi::CallbackInfo& info) : Handle(info) {
    guard(info.Env(), [&] {
      const Argument options = argument(info, 0, "options");
      TlsOptions core;
      core.certificate_file = options.property("certificateFile").text();
      core.key_file = options.property("keyFile").text();
      core.trusted_file = options.property("trustedFile").text();
      core.vm = options.property("vm").text();
      core.peer_name = options.property("peerName").text();
      credentials_ = std::make_shared<TlsCredentials>(core);
    });
    opened();
  }

  // Connections that were made with them go on.
  void shut_down() override { credentials_.reset(); }

  std::shared_ptr<const TlsCredentials> credentials() const { return credentials_; }

 private:
  Napi::Value own(const Napi::CallbackInfo& info) {
    const TlsCredentials::Own own = credentials_->own();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("names", own.names);
    result.Set("fingerprint", own.fingerprint);
    result.Set("expiresS", Napi::Number::New(info.Env(), static_cast<double>(own.expires_s)));
    return result;
  }

  std::shared_ptr<const TlsCredentials> credentials_;
};

}  // namespace

Napi::Function define_tls_credentials(Napi::Env env) { return TlsCredentialsHandle::define(env); }

std::shared_ptr<const TlsCredentials> credentials_or_null(const Argument& argument) {
  if (argument.value.IsNull()) return nullptr;
  const TlsCredentialsHandle* handle = TlsCredentialsHandle::unwrap(argument.value);
  if (handle == nullptr) argument.fail("TlsCredentials or null");
  if (!handle->is_open()) throw Error("ERR_COLO_CLOSED", 0, "TlsCredentials is closed");
  return handle->credentials();
}

}  // namespace colo::addon
