#include <memory>

#include "../core/watchdog.h"
#include "classes.h"
#include "handle.h"

namespace colo::addon {
namespace {

class WatchdogHandle : public Handle<WatchdogHandle> {
 public:
  static constexpr const char* kName = "Watchdog";
  static constexpr napi_type_tag kTag = {0x7c15a9e04d3b4286, 0xa06b52f8c9174ed3};

  static Napi::Function define(Napi::Env env) {
    using Self = WatchdogHandle;
    return DefineClass(env, kName,
                       {method<&Self::feed>("feed"), method<&Self::disarm>("disarm"), close_method()});
  }

  explicit WatchdogHandle(const Napi::CallbackInfo& info) : Handle(info) {
    guard(info.Env(), [&] {
      watchdog_ = std::make_unique<Watchdog>(
          argument(info, 0, "path").text(), static_cast<int>(argument(info, 1, "timeoutS").integer(1, 3600)));
    });
    const auto constant = [&](const char* name, Napi::Value value) {
      info.This().As<Napi::Object>().DefineProperty(
          Napi::PropertyDescriptor::Value(name, value, napi_enumerable));
    };
    constant("timeoutS", Napi::Number::New(info.Env(), watchdog_->timeout_s()));
    constant("identity", Napi::String::New(info.Env(), watchdog_->identity()));
    opened();
  }

  void shut_down() override { watchdog_.reset(); }

 private:
  Napi::Value feed(const Napi::CallbackInfo& info) {
    watchdog_->feed();
    return info.Env().Undefined();
  }

  Napi::Value disarm(const Napi::CallbackInfo& info) {
    watchdog_->disarm();
    return info.Env().Undefined();
  }

  std::unique_ptr<Watchdog> watchdog_;
};

}  // namespace

Napi::Function define_watchdog(Napi::Env env) { return WatchdogHandle::define(env); }

}  // namespace colo::addon
