#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "../core/output_gate.h"
#include "classes.h"
#include "handle.h"
#include "results.h"

namespace colo::addon {
namespace {

class OutputGateHandle : public Handle<OutputGateHandle> {
 public:
  static constexpr const char* kName = "OutputGate";
  static constexpr napi_type_tag kTag = {0xc4915e7a0b2d4f63, 0xa83e6f1c92d74b05};

  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, kName,
        {method<&OutputGateHandle::add_port>("addPort"), method<&OutputGateHandle::release>("release"),
         method<&OutputGateHandle::open>("open"), method<&OutputGateHandle::flush>("flush"),
         method<&OutputGateHandle::stats>("stats"), close_method()});
  }

  explicit OutputGateHandle(const Napi::CallbackInfo& info) : Handle(info) {
    guard(info.Env(), [&] {
      const Argument argument_options = argument(info, 0, "options");
      on_output_held_ = Napi::Persistent(argument_options.property("onOutputHeld").function());
      on_pressure_ = Napi::Persistent(argument_options.property("onPressure").function());
      on_broken_ = Napi::Persistent(argument_options.property("onBroken").function());
      GateOptions options;
      options.limit_bytes = argument_options.property("limitBytes").integer(kGateLimitBytesMin);
      options.pressure_bytes = argument_options.property("pressureBytes").integer(1, options.limit_bytes);
      gate_ = std::make_shared<OutputGate>(options, events());
    });
    opened();
  }

  // A capture that holds the gate too finds it closed.
  void shut_down() override {
    gate_->close();
    if (flusher_.joinable()) flusher_.join();
    gate_.reset();
  }

  std::shared_ptr<OutputGate> gate() const { return gate_; }

 private:
  OutputGate::Events events() const {
    const auto queue = environment_.completions();
    const std::uint64_t id = id_;
    return {
        [queue, id] { post_to(queue, id, [](OutputGateHandle& self) { self.on_output_held_.Call({}); }); },
        [queue, id] { post_to(queue, id, [](OutputGateHandle& self) { self.on_pressure_.Call({}); }); },
        [queue, id](const char* reason) {
          post_to(queue, id, [reason](OutputGateHandle& self) {
            self.on_broken_.Call({Napi::String::New(self.Env(), reason)});
          });
        }};
  }

  Napi::Value add_port(const Napi::CallbackInfo& info) {
    const int held = argument(info, 0, "heldFd").descriptor();
    const int release_fd = argument(info, 1, "releaseFd").descriptor();
    return Napi::Number::New(info.Env(), gate_->add_port(held, release_fd));
  }

  Napi::Value release(const Napi::CallbackInfo& info) {
    gate_->release(argument(info, 0, "epoch").integer());
    return info.Env().Undefined();
  }

  Napi::Value open(const Napi::CallbackInfo& info) {
    gate_->open();
    return info.Env().Undefined();
  }

  // On a thread of its own, because it waits; it is rare.
  Napi::Value flush(const Napi::CallbackInfo& info) {
    const auto timeout_ms = argument(info, 0, "timeoutMs").integer_as<unsigned>();
    require_idle("flush");
    if (gate_->stats().holding)
      throw Error("ERR_COLO_GATE_HOLDS", 0, "a gate that holds output can't be flushed: open it first");
    if (flusher_.joinable()) flusher_.join();
    return run(info.Env(), [&](const Environment::Operation& operation) {
      flusher_ = std::thread([gate = gate_, timeout_ms, settle = operation.settle] {
        const bool done = gate->flush(timeout_ms);
        settle(nullptr, [done](Napi::Env env) { return Napi::Boolean::New(env, done); });
      });
    });
  }

  Napi::Value stats(const Napi::CallbackInfo& info) { return to_js(info.Env(), gate_->stats()); }

  Napi::FunctionReference on_output_held_, on_pressure_, on_broken_;
  std::shared_ptr<OutputGate> gate_;
  std::thread flusher_;
};

}  // namespace

Napi::Function define_output_gate(Napi::Env env) { return OutputGateHandle::define(env); }

std::shared_ptr<OutputGate> gate_or_null(const Argument& argument) {
  if (argument.value.IsNull()) return nullptr;
  const OutputGateHandle* handle = OutputGateHandle::unwrap(argument.value);
  if (handle == nullptr) argument.fail("an OutputGate or null");
  if (!handle->is_open()) throw Error("ERR_COLO_CLOSED", 0, "OutputGate is closed");
  return handle->gate();
}

}  // namespace colo::addon
