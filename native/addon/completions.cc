#include "completions.h"

#include <utility>

#include "../core/error.h"

namespace colo::addon {

std::shared_ptr<Completions> Completions::create(napi_env env, void* context,
                                                 napi_threadsafe_function_call_js drain) {
  auto self = std::make_shared<Completions>();
  napi_value name;
  COLO_ASSERT(napi_create_string_utf8(env, "colo-agent", NAPI_AUTO_LENGTH, &name) == napi_ok);
  COLO_ASSERT(napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, context,
                                              drain, &self->wake_) == napi_ok);
  self->hold(env, false);
  return self;
}

void Completions::post(Task task) {
  const std::lock_guard lock(mutex_);
  if (wake_ == nullptr) return;
  tasks_.push_back(std::move(task));
  if (tasks_.size() > 1) return;  // the loop has been woken already
  // Under the lock, so that close() can't give the function up in between.
  COLO_ASSERT(napi_call_threadsafe_function(wake_, nullptr, napi_tsfn_nonblocking) == napi_ok);
}

std::vector<Task> Completions::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(tasks_, {});
}

void Completions::hold(napi_env env, bool keep_process_alive) {
  const auto change = keep_process_alive ? napi_ref_threadsafe_function : napi_unref_threadsafe_function;
  COLO_ASSERT(change(env, wake_) == napi_ok);
}

void Completions::close() {
  const std::lock_guard lock(mutex_);
  tasks_.clear();
  COLO_ASSERT(napi_release_threadsafe_function(std::exchange(wake_, nullptr), napi_tsfn_abort) == napi_ok);
}

}  // namespace colo::addon
