#include <chrono>
#include <memory>
#include <system_error>
#include <utility>

#include "../core/error.h"
#include "../core/heartbeat.h"
#include "../core/heartbeat_frame.h"
#include "classes.h"
#include "handle.h"
#include "results.h"

namespace colo::addon {
namespace {

const char* name_of(HeartbeatVerdict::Kind kind) {
  switch (kind) {
    case HeartbeatVerdict::Kind::silent:
      return "silent";
    case HeartbeatVerdict::Kind::closed:
      return "closed";
    case HeartbeatVerdict::Kind::stalled:
      return "stalled";
    case HeartbeatVerdict::Kind::malformed:
      return "malformed";
  }
  COLO_ASSERT(false);
}

class HeartbeatHandle : public Handle<HeartbeatHandle> {
 public:
  static constexpr const char* kName = "Heartbeat";
  static constexpr napi_type_tag kTag = {0x51c07e2b9a6d4f38, 0xb4e83f1d7069a25c};

  static Napi::Function define(Napi::Env env) {
    using Self = HeartbeatHandle;
    return DefineClass(env, kName,
                       {method<&Self::progress>("progress"), method<&Self::stats>("stats"), close_method()});
  }

  explicit HeartbeatHandle(const Napi::CallbackInfo& info) : Handle(info) {
    guard(info.Env(), [&] {
      const Argument options = argument(info, 0, "options");
      on_verdict_ = Napi::Persistent(options.property("onVerdict").function());
      on_privileges_ = Napi::Persistent(options.property("onPrivileges").function());
      const HeartbeatLimits limits = limits_of(options);
      const std::uint64_t generation = options.property("generation").integer();
      const Argument end = options.property("end");
      if (is_peer_connection(end)) {
        // The last argument that is looked at: from here on the connection is ours.
        heartbeat_ = std::make_unique<Heartbeat>(limits, generation, take_peer_connection(end), verdict(),
                                                 privileges());
      } else {
        heartbeat_ = std::make_unique<Heartbeat>(limits, generation, target_of(end), verdict(), privileges());
      }
    });
    opened();
  }

  void shut_down() override { heartbeat_.reset(); }

 private:
  static HeartbeatLimits limits_of(const Argument& options) {
    const auto milliseconds = [&](const char* name, std::uint64_t min) {
      return std::chrono::milliseconds(options.property(name).integer(min, 1'000'000'000));
    };
    return {milliseconds("intervalMs", 10), milliseconds("timeoutMs", 1), milliseconds("firstTimeoutMs", 1),
            milliseconds("stallTimeoutMs", 1), milliseconds("closedGraceMs", 0)};
  }

  static Heartbeat::Target target_of(const Argument& end) {
    return {end.property("host").text(), end.property("port").integer_as<std::uint16_t>(1),
            end.property("token").bytes(kHeartbeatTokenBytes),
            credentials_or_null(end.property("credentials"))};
  }

  Heartbeat::OnVerdict verdict() const {
    return [queue = environment_.completions(), id = id_](const HeartbeatVerdict& verdict) {
      post_to(queue, id, [verdict](HeartbeatHandle& self) { self.report(verdict); });
    };
  }

  void report(const HeartbeatVerdict& verdict) {
    const Napi::Env env = Env();
    const std::chrono::duration<double, std::micro> heard = verdict.heard.time_since_epoch();
    on_verdict_.Call({Napi::String::New(env, name_of(verdict.kind)), Napi::String::New(env, verdict.reason),
                      Napi::Number::New(env, heard.count())});
  }

  Heartbeat::OnPrivileges privileges() const {
    return [queue = environment_.completions(), id = id_](const HeartbeatPrivileges& got) {
      post_to(queue, id, [got](HeartbeatHandle& self) {
        const Napi::Env env = self.Env();
        self.on_privileges_.Call(
            {reason_or_null(env, got.real_time_errno), reason_or_null(env, got.locked_memory_errno)});
      });
    };
  }

  static Napi::Value reason_or_null(Napi::Env env, int error) {
    if (error == 0) return env.Null();
    return Napi::String::New(env, std::generic_category().message(error));
  }

  Napi::Value progress(const Napi::CallbackInfo& info) {
    heartbeat_->progress();
    return info.Env().Undefined();
  }

  Napi::Value stats(const Napi::CallbackInfo& info) { return to_js(info.Env(), heartbeat_->stats()); }

  Napi::FunctionReference on_verdict_, on_privileges_;
  std::unique_ptr<Heartbeat> heartbeat_;
};

}  // namespace

Napi::Function define_heartbeat(Napi::Env env) { return HeartbeatHandle::define(env); }

}  // namespace colo::addon
