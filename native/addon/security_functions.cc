#include <sys/prctl.h>

#include <string>

#include "../core/certificate.h"
#include "../core/error.h"
#include "classes.h"
#include "errors.h"

namespace colo::addon {
namespace {

std::int64_t seconds(const Argument& argument) { return static_cast<std::int64_t>(argument.integer()); }

Napi::Value make_certificate_function(const Napi::CallbackInfo& info) {
  const Argument options = argument(info, 0, "options");
  CertificateRequest request;
  request.common_name = options.property("commonName").text();
  const Napi::Array vms = options.property("vms").array();
  for (std::uint32_t i = 0; i < vms.Length(); ++i)
    request.vms.push_back(Argument{vms.Get(i), "options.vms[" + std::to_string(i) + "]"}.text());
  request.valid_from_s = seconds(options.property("validFromS"));
  request.valid_until_s = seconds(options.property("validUntilS"));
  const KeyAndCertificate made = make_self_signed(request);
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("key", made.key_pem);
  result.Set("certificate", made.certificate_pem);
  return result;
}

Napi::Value may_issue_function(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), may_issue(argument(info, 0, "certificate").bytes()));
}

Napi::Value forbid_core_dumps_function(const Napi::CallbackInfo& info) {
  if (::prctl(PR_SET_DUMPABLE, 0) != 0) throw_errno("ERR_COLO_CREDENTIALS", "forbidding core dumps");
  return info.Env().Undefined();
}

}  // namespace

void define_security(Napi::Env env, Napi::Object exports) {
  exports.Set("makeCertificate",
              Napi::Function::New<guarded<make_certificate_function>>(env, "makeCertificate"));
  exports.Set("certificateMayIssue",
              Napi::Function::New<guarded<may_issue_function>>(env, "certificateMayIssue"));
  exports.Set("forbidCoreDumps",
              Napi::Function::New<guarded<forbid_core_dumps_function>>(env, "forbidCoreDumps"));
}

}  // namespace colo::addon
