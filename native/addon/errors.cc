#include "errors.h"

namespace colo::addon {

Napi::Error to_js(Napi::Env env, const Error& error) {
  Napi::Error result = Napi::Error::New(env, error.what());
  result.Set("code", error.code());
  if (error.sys_errno() != 0) result.Set("errno", Napi::Number::New(env, error.sys_errno()));
  return result;
}

Napi::Error argument_error(Napi::Env env, const std::string& what) {
  Napi::Error result = Napi::TypeError::New(env, what);
  result.Set("code", "ERR_COLO_ARGUMENT");
  return result;
}

}  // namespace colo::addon
