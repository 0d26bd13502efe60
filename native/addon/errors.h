// From C++ errors to JavaScript's.
#pragma once

#include <napi.h>

#include <exception>
#include <string>

#include "../core/error.h"

namespace colo::addon {

// An Error with `code` and, where a system call is behind it, `errno`.
Napi::Error to_js(Napi::Env env, const Error& error);

// A TypeError with code ERR_COLO_ARGUMENT.
Napi::Error argument_error(Napi::Env env, const std::string& what);

// Calls `body`, whose core errors become JavaScript's. Anything else that C++ throws (no memory, no more
// threads) gets ERR_COLO_SYSTEM.
template <typename Body>
auto guard(Napi::Env env, const Body& body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (const Error& error) {
    throw to_js(env, error);
  } catch (const std::exception& error) {
    throw to_js(env, Error("ERR_COLO_SYSTEM", 0, error.what()));
  }
}

// A function for JavaScript whose errors are guarded.
template <Napi::Value (*body)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  return guard(info.Env(), [&] { return body(info); });
}

}  // namespace colo::addon
