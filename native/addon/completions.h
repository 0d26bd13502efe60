// The one way from native threads to JavaScript.
#pragma once

#include <node_api.h>

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace colo::addon {

class Environment;

// What native threads leave for the JavaScript thread. A task names JavaScript state by the numbers of
// environment.h and never owns any: a task that comes too late is destroyed wherever it happens to be.
using Task = std::function<void(Environment&)>;

// One thread-safe function per environment; only the first task of a batch wakes the event loop, which then
// runs the whole batch in one call.
class Completions {
 public:
  // `drain` is called on the JavaScript thread when tasks wait. Alive or not, it doesn't keep the process
  // from ending (see hold()).
  static std::shared_ptr<Completions> create(napi_env env, void* context,
                                             napi_threadsafe_function_call_js drain);

  // From any thread, at any time; after close() the task is dropped.
  void post(Task task);

  // The following belong to the JavaScript thread.
  std::vector<Task> take();
  void hold(napi_env env, bool keep_process_alive);
  void close();

 private:
  std::mutex mutex_;
  std::vector<Task> tasks_;
  napi_threadsafe_function wake_ = nullptr;  // nullptr once closed
};

}  // namespace colo::addon
