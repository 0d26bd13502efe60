#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "../core/acceptor.h"
#include "../core/error.h"
#include "classes.h"
#include "handle.h"

namespace colo::addon {
namespace {

const char* name_of(Acceptor::Link link) {
  switch (link) {
    case Acceptor::Link::control:
      return "control";
    case Acceptor::Link::bulk:
      return "bulk";
    case Acceptor::Link::heartbeat:
      return "heartbeat";
    case Acceptor::Link::doctor:
      return "doctor";
  }
  COLO_ASSERT(false);
}

class AcceptorHandle : public Handle<AcceptorHandle> {
 public:
  static constexpr const char* kName = "Acceptor";
  static constexpr napi_type_tag kTag = {0x6b0e52d7f3a14c98, 0x87c2910d4eb63f5a};

  static Napi::Function define(Napi::Env env) { return DefineClass(env, kName, {close_method()}); }

  explicit AcceptorHandle(const Napi::CallbackInfo& info) : Handle(info) {
    guard(info.Env(), [&] {
      const Argument options = argument(info, 0, "options");
      on_accepted_ = Napi::Persistent(options.property("onAccepted").function());
      on_refused_ = Napi::Persistent(options.property("onRefused").function());
      acceptor_ = std::make_unique<Acceptor>(options.property("host").text(),
                                             options.property("port").integer_as<std::uint16_t>(), events(),
                                             credentials_or_null(options.property("credentials")));
    });
    info.This().As<Napi::Object>().DefineProperty(Napi::PropertyDescriptor::Value(
        "port", Napi::Number::New(info.Env(), acceptor_->port()), napi_enumerable));
    opened();
  }

  void shut_down() override { acceptor_.reset(); }

 private:
  Acceptor::Events events() const {
    const auto queue = environment_.completions();
    const std::uint64_t id = id_;
    return {[queue, id](Acceptor::Link link, Connection connection, std::string preface, std::string peer) {
              // Shared because tasks are copied; a task that is dropped closes the connection.
              auto owned = std::make_shared<Connection>(std::move(connection));
              post_to(queue, id, [=](AcceptorHandle& self) { self.accepted(link, *owned, preface, peer); });
            },
            [queue, id](std::string peer, std::string reason) {
              post_to(queue, id, [=](AcceptorHandle& self) {
                const Napi::Env env = self.Env();
                self.on_refused_.Call({Napi::String::New(env, peer), Napi::String::New(env, reason)});
              });
            }};
  }

  void accepted(Acceptor::Link link, Connection& connection, const std::string& preface,
                const std::string& peer) {
    const Napi::Env env = Env();
    auto bytes = Napi::Uint8Array::New(env, preface.size());
    std::copy(preface.begin(), preface.end(), bytes.Data());
    const auto name = Napi::String::New(env, name_of(link));
    const auto peer_name = Napi::String::New(env, peer);
    on_accepted_.Call({name, new_peer_connection(env, std::move(connection)), bytes, peer_name});
  }

  Napi::FunctionReference on_accepted_, on_refused_;
  std::unique_ptr<Acceptor> acceptor_;
};

}  // namespace

Napi::Function define_acceptor(Napi::Env env) { return AcceptorHandle::define(env); }

}  // namespace colo::addon
