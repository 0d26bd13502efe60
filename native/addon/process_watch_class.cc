#include <functional>
#include <memory>

#include "../core/process_watch.h"
#include "classes.h"
#include "handle.h"

namespace colo::addon {
namespace {

class ProcessWatchHandle : public Handle<ProcessWatchHandle> {
 public:
  static constexpr const char* kName = "ProcessWatch";
  static constexpr napi_type_tag kTag = {0x2f6d3a9c41b84e07, 0x9d1c7be05a3f4812};

  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, kName, {method<&ProcessWatchHandle::signal>("signal"), close_method()});
  }

  explicit ProcessWatchHandle(const Napi::CallbackInfo& info) : Handle(info) {
    guard(info.Env(), [&] {
      const auto pid = argument(info, 0, "pid").integer_as<pid_t>(1);
      on_dying_ = Napi::Persistent(argument(info, 1, "onDying").function());
      on_ended_ = Napi::Persistent(argument(info, 2, "onEnded").function());
      watch_ =
          std::make_unique<ProcessWatch>(pid, ProcessWatch::Events{caller<&ProcessWatchHandle::on_dying_>(),
                                                                   caller<&ProcessWatchHandle::on_ended_>()});
    });
    opened();
  }

  void shut_down() override { watch_.reset(); }

 private:
  Napi::Value signal(const Napi::CallbackInfo& info) {
    watch_->signal(argument(info, 0, "number").integer_as<int>());
    return info.Env().Undefined();
  }

  template <auto Callback>
  std::function<void()> caller() {
    return [queue = environment_.completions(), id = id_] {
      post_to(queue, id, [](ProcessWatchHandle& self) { (self.*Callback).Call({}); });
    };
  }

  Napi::FunctionReference on_dying_, on_ended_;
  std::unique_ptr<ProcessWatch> watch_;
};

}  // namespace

Napi::Function define_process_watch(Napi::Env env) { return ProcessWatchHandle::define(env); }

}  // namespace colo::addon
