#include "environment.h"

#include <optional>
#include <utility>

#include "errors.h"

namespace colo::addon {

void Environment::create(Napi::Env env) { env.SetInstanceData(new Environment(env)); }

Environment::Environment(Napi::Env env) : env_(env) {
  completions_ = Completions::create(env, this, drain);
  // Hooks run last in, first out. This one comes after the thread-safe function's own, so it runs before it.
  COLO_ASSERT(napi_add_env_cleanup_hook(
                  env, [](void* self) { static_cast<Environment*>(self)->clean_up(); }, this) == napi_ok);
}

void Environment::clean_up() {
  for (const auto& [id, object] : open_) object->shut_down();
  open_.clear();
  completions_->close();
  // No JavaScript can run any more, so the promises stay unsettled for ever, like everything else that the
  // environment was about to do.
  pending_.clear();
  peer_connection_class_.Reset();
}

OpenObject* Environment::find(std::uint64_t id) const {
  const auto found = open_.find(id);
  return found == open_.end() ? nullptr : found->second;
}

// `env` is null when Node.js throws away calls of an environment that has ended.
void Environment::drain(napi_env env, napi_value, void* context, void*) {
  if (env == nullptr) return;
  auto& self = *static_cast<Environment*>(context);
  for (const Task& task : self.completions_->take()) {
    const Napi::HandleScope scope(env);
    try {
      task(self);
    } catch (const Napi::Error& error) {
      // A callback of the user's threw: an uncaught exception, as everywhere in Node.js. The other tasks must
      // still run.
      napi_fatal_exception(env, error.Value());
    }
  }
}

Environment::Operation Environment::begin(Napi::Env env, Napi::Function progress) {
  const std::uint64_t id = next_id();
  Pending pending{Napi::Promise::Deferred::New(env), {}};
  if (!progress.IsEmpty()) pending.progress = Napi::Persistent(progress);
  const Napi::Promise promise = pending.deferred.Promise();
  if (pending_.empty()) completions_->hold(env, true);
  pending_.emplace(id, std::move(pending));
  Settle settle = [queue = completions_, id](const Error* error, ToJs value) {
    std::optional<Error> kept;
    if (error != nullptr) kept = *error;
    queue->post([id, kept = std::move(kept), value = std::move(value)](Environment& self) {
      self.settle(id, kept ? &*kept : nullptr, value);
    });
  };
  return {id, promise, std::move(settle)};
}

void Environment::settle(std::uint64_t operation, const Error* error, const ToJs& value) {
  const auto found = pending_.find(operation);
  COLO_ASSERT(found != pending_.end());  // an operation ends once
  const Napi::Promise::Deferred deferred = found->second.deferred;
  forget(operation);
  if (error != nullptr) {
    deferred.Reject(to_js(env_, *error).Value());
  } else {
    deferred.Resolve(value(env_));
  }
}

void Environment::report(std::uint64_t operation, const ToJs& value) {
  const auto found = pending_.find(operation);
  if (found != pending_.end()) found->second.progress.Call({value(env_)});
}

void Environment::cancel(std::uint64_t operation) {
  const Napi::Promise::Deferred deferred = pending_.at(operation).deferred;
  forget(operation);
  deferred.Resolve(env_.Undefined());
}

void Environment::forget(std::uint64_t operation) {
  pending_.erase(operation);
  if (pending_.empty()) completions_->hold(env_, false);
}

}  // namespace colo::addon
