#include <memory>
#include <utility>

#include "../core/dirty_rate_probe.h"
#include "classes.h"
#include "handle.h"
#include "results.h"

namespace colo::addon {
namespace {

constexpr std::uint64_t kIntervalUsMax = 600'000'000;

class DirtyRateProbeHandle : public Handle<DirtyRateProbeHandle> {
 public:
  static constexpr const char* kName = "DirtyRateProbe";
  static constexpr napi_type_tag kTag = {0x6d0c4be91f2a4753, 0xa8e3571c9b604fd2};

  static Napi::Function define(Napi::Env env) {
    using Self = DirtyRateProbeHandle;
    return DefineClass(env, kName,
                       {method<&Self::begin>("begin"), method<&Self::watch>("watch"), close_method()});
  }

  explicit DirtyRateProbeHandle(const Napi::CallbackInfo& info) : Handle(info) {
    guard(info.Env(), [&] {
      const Argument options = argument(info, 0, "options");
      DirtyRateOptions core;
      core.pid = options.property("pid").integer_as<pid_t>(1);
      core.blocks = options.property("blocks").ram_blocks();
      core.threads = static_cast<unsigned>(options.property("threads").integer(1, 64));
      core.sample_one_in = options.property("sampleOneIn").integer(1);
      probe_ = std::make_unique<DirtyRateProbe>(core);
    });
    opened();
  }

  void shut_down() override {
    probe_->close();
    probe_.reset();
  }

 private:
  Napi::Value begin(const Napi::CallbackInfo& info) {
    require_idle("begin");
    return run(info.Env(), [&](const Environment::Operation& operation) {
      probe_->begin([settle = operation.settle](const Error* error) {
        settle(error, [](Napi::Env env) { return env.Undefined(); });
      });
    });
  }

  Napi::Value watch(const Napi::CallbackInfo& info) {
    const std::uint64_t interval_us = argument(info, 0, "intervalUs").integer(1, kIntervalUsMax);
    require_idle("watch");
    return run(info.Env(), [&](const Environment::Operation& operation) {
      probe_->watch(interval_us, [settle = operation.settle](const Error* error, DirtyRateRound round) {
        settle(error, [round](Napi::Env env) { return to_js(env, round); });
      });
    });
  }

  std::unique_ptr<DirtyRateProbe> probe_;
};

}  // namespace

Napi::Function define_dirty_rate_probe(Napi::Env env) { return DirtyRateProbeHandle::define(env); }

}  // namespace colo::addon
