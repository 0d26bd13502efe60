#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "../core/connection.h"
#include "../core/link_sockets.h"
#include "../core/tls_pump.h"
#include "classes.h"
#include "handle.h"

namespace colo::addon {
namespace {

// One connection, from whichever side: made by the acceptor with a connection that stands, or by JavaScript
// with an address to connect to.
class PeerConnectionHandle : public Handle<PeerConnectionHandle> {
 public:
  static constexpr const char* kName = "PeerConnection";
  static constexpr napi_type_tag kTag = {0x2f9ad4c07b61e835, 0xa1537ce8f04d296b};

  static Napi::Function define(Napi::Env env) {
    using Self = PeerConnectionHandle;
    return DefineClass(env, kName,
                       {method<&Self::connect>("connect"), method<&Self::security>("security"),
                        method<&Self::open_socket>("openSocket"), close_method()});
  }

  explicit PeerConnectionHandle(const Napi::CallbackInfo& info) : Handle(info) {
    if (info[0].IsExternal()) {
      connection_ = std::move(*info[0].As<Napi::External<Connection>>().Data());
      stands_ = true;
    }
    opened();
  }

  void shut_down() override {
    if (sockets_) sockets_->cut();
    if (connector_.joinable()) connector_.join();
    pump_.reset();
    sockets_.reset();
    connection_ = {};
  }

  Connection take() {
    require_standing();
    Connection taken = std::move(connection_);
    end();
    return taken;
  }

 private:
  // On a thread of its own, because it waits. The host is an address: a name could not be given up.
  Napi::Value connect(const Napi::CallbackInfo& info) {
    const std::string host = argument(info, 0, "host").text();
    const auto port = argument(info, 1, "port").integer_as<std::uint16_t>(1);
    const auto timeout_ms = static_cast<int>(argument(info, 2, "timeoutMs").integer(1, 600'000));
    const auto credentials = credentials_or_null(argument(info, 3, "credentials"));
    require_idle("connect");
    if (stands_ || sockets_) throw Error("ERR_COLO_BUSY", 0, "PeerConnection is connected already");
    sockets_ = std::make_shared<LinkSockets>();
    return run(info.Env(), [&](const Environment::Operation& operation) {
      connector_ = std::thread(
          [this, sockets = sockets_, host, port, timeout_ms, credentials, settle = operation.settle] {
            try {
              connection_ = sockets->release(sockets->connect(host, port, timeout_ms, credentials.get()));
            } catch (const Error& error) {
              return settle(&error, undefined);
            } catch (const std::exception& thrown) {
              const Error error("ERR_COLO_RESOURCES", 0, thrown.what());
              return settle(&error, undefined);
            }
            stands_ = true;
            settle(nullptr, undefined);
          });
    });
  }

  static Napi::Value undefined(Napi::Env env) { return env.Undefined(); }

  void require_standing() {
    require_idle("be used before it is connected");
    if (connector_.joinable()) connector_.join();
    if (!stands_ || pump_)
      throw Error("ERR_COLO_CLOSED", 0, "PeerConnection is not connected, or was given away");
  }

  Napi::Value security(const Napi::CallbackInfo& info) {
    require_standing();
    if (!connection_.tls) return info.Env().Null();
    const TlsInfo tls = connection_.tls->info();
    Napi::Object result = Napi::Object::New(info.Env());
    result.Set("cipher", tls.cipher);
    result.Set("kernelSends", tls.kernel_sends);
    result.Set("peer", tls.peer);
    result.Set("fingerprint", tls.fingerprint);
    result.Set("expiresS", Napi::Number::New(info.Env(), static_cast<double>(tls.expires_s)));
    return result;
  }

  // A plain connection is given away as it is; what a TLS one carries goes through a pump, with whose end
  // this object closes.
  Napi::Value open_socket(const Napi::CallbackInfo& info) {
    require_standing();
    if (!connection_.tls) return Napi::Number::New(info.Env(), take().fd.release());
    const auto queue = environment_.completions();
    pump_.emplace(std::move(connection_),
                  [queue, id = id_] { post_to(queue, id, [](PeerConnectionHandle& self) { self.end(); }); });
    return Napi::Number::New(info.Env(), pump_->take_user_end().release());
  }

  std::shared_ptr<LinkSockets> sockets_;
  std::thread connector_;
  bool stands_ = false;  // written by the connector before it settles, read after it was joined
  Connection connection_;
  std::optional<TlsPump> pump_;
};

}  // namespace

Napi::Function define_peer_connection(Napi::Env env) {
  const Napi::Function constructor = PeerConnectionHandle::define(env);
  Environment::of(env).peer_connection_class() = Napi::Persistent(constructor);
  return constructor;
}

Napi::Object new_peer_connection(Napi::Env env, Connection connection) {
  // The constructor takes the connection out; if it isn't reached, the connection closes here.
  return Environment::of(env).peer_connection_class().New(
      {Napi::External<Connection>::New(env, &connection)});
}

bool is_peer_connection(const Argument& argument) {
  return PeerConnectionHandle::unwrap(argument.value) != nullptr;
}

Connection take_peer_connection(const Argument& argument) {
  PeerConnectionHandle* const handle = PeerConnectionHandle::unwrap(argument.value);
  if (handle == nullptr) argument.fail("a PeerConnection");
  if (!handle->is_open()) throw Error("ERR_COLO_CLOSED", 0, "PeerConnection is closed");
  return handle->take();
}

}  // namespace colo::addon
