// What the addon keeps for one JavaScript environment: the main thread's, or a worker's.
#pragma once

#include <napi.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <unordered_map>

#include "../core/error.h"
#include "completions.h"

namespace colo::addon {

// Makes a JavaScript value on the JavaScript thread, within its handle scope.
using ToJs = std::function<Napi::Value(Napi::Env)>;
// Ends an operation, once, from any thread: with the error, or (nullptr) with a value.
using Settle = std::function<void(const Error*, ToJs)>;

// An object with native threads. Open ones are known to their environment, which shuts them down when it
// ends.
class OpenObject {
 public:
  virtual ~OpenObject() = default;
  // Ends all its native threads. Touches no JavaScript.
  virtual void shut_down() = 0;
};

// Everything here belongs to the JavaScript thread; native threads reach it through completions(), with
// numbers that may be stale by then.
//
// The end of an environment (process exit, worker.terminate()) can come at any moment, with operations in
// flight. Its cleanup hook runs before those of Node-API itself: it shuts every open object down, so that no
// native thread is left, and only then gives the thread-safe function up.
class Environment {
 public:
  static void create(Napi::Env env);
  static Environment& of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

  explicit Environment(Napi::Env env);

  const std::shared_ptr<Completions>& completions() const { return completions_; }

  std::uint64_t next_id() { return next_id_++; }

  // Open objects are never collected: their lifetime ends with close() or with the environment.
  void opened(std::uint64_t id, OpenObject* object) { open_.emplace(id, object); }
  void closed(std::uint64_t id) { open_.erase(id); }
  OpenObject* find(std::uint64_t id) const;

  // How the addon itself makes a PeerConnection (peer_connection_class.cc).
  Napi::FunctionReference& peer_connection_class() { return peer_connection_class_; }

  // A promise that `settle` ends. It keeps the process alive until then. `progress` (may be empty) is called
  // by report().
  struct Operation {
    std::uint64_t id;
    Napi::Promise promise;
    Settle settle;
  };
  Operation begin(Napi::Env env, Napi::Function progress = {});
  bool is_pending(std::uint64_t operation) const { return pending_.contains(operation); }
  void report(std::uint64_t operation, const ToJs& value);
  // The operation didn't start after all; nobody has seen its promise.
  void cancel(std::uint64_t operation);

 private:
  struct Pending {
    Napi::Promise::Deferred deferred;
    Napi::FunctionReference progress;
  };

  static void drain(napi_env env, napi_value, void* context, void*);
  void settle(std::uint64_t operation, const Error* error, const ToJs& value);
  void forget(std::uint64_t operation);
  void clean_up();

  Napi::Env env_;
  std::shared_ptr<Completions> completions_;
  std::uint64_t next_id_ = 1;
  Napi::FunctionReference peer_connection_class_;
  std::unordered_map<std::uint64_t, OpenObject*> open_;
  std::unordered_map<std::uint64_t, Pending> pending_;
};

}  // namespace colo::addon
