// What the addon's classes share: an opaque JavaScript object around one object of the core.
#pragma once

#include <napi.h>

#include <utility>

#include "environment.h"
#include "errors.h"

namespace colo::addon {

// T derives from Handle<T> and has `static constexpr const char* kName`, `static constexpr napi_type_tag
// kTag` (any 128 bits, of its own) and shut_down(). Its constructor ends with opened().
//
// Methods need no check of `this`: V8 refuses a receiver of another class. An argument has no such check,
// hence the tag: see unwrap().
template <typename T>
class Handle : public Napi::ObjectWrap<T>, public OpenObject {
 public:
  // The object behind an argument, or nullptr when it is of another class, whatever its prototype says.
  static T* unwrap(Napi::Value value) {
    bool matches = false;
    if (!value.IsObject()) return nullptr;
    if (napi_check_object_type_tag(value.Env(), value, &T::kTag, &matches) != napi_ok || !matches)
      return nullptr;
    return T::Unwrap(value.As<Napi::Object>());
  }

  bool is_open() const { return open_; }

 protected:
  using Methods = std::initializer_list<Napi::ClassPropertyDescriptor<T>>;

  explicit Handle(const Napi::CallbackInfo& info)
      : Napi::ObjectWrap<T>(info), environment_(Environment::of(info.Env())), id_(environment_.next_id()) {
    if (napi_type_tag_object(info.Env(), info.This(), &T::kTag) != napi_ok)
      throw Napi::Error::New(info.Env());
  }

  void opened() {
    environment_.opened(id_, this);
    this->Ref();
    open_ = true;
  }

  // As JavaScript's close(); for objects whose work ends by itself. The object may be gone afterwards.
  void end() {
    if (!std::exchange(open_, false)) return;
    environment_.closed(id_);
    this->shut_down();
    this->Unref();
  }

  // A method that needs the object open.
  template <Napi::Value (T::*body)(const Napi::CallbackInfo&)>
  static Napi::ClassPropertyDescriptor<T> method(const char* name) {
    return T::InstanceMethod(name, static_cast<typename Napi::ObjectWrap<T>::InstanceMethodCallback>(
                                       &Handle::template call<body>));
  }
  static Napi::ClassPropertyDescriptor<T> close_method() {
    return T::InstanceMethod(
        "close", static_cast<typename Napi::ObjectWrap<T>::InstanceVoidMethodCallback>(&Handle::close));
  }

  // A function that calls `handler` with this object on the JavaScript thread, unless it is closed by then.
  // From any thread.
  template <typename Handler>
  void post(Handler handler) const {
    post_to(environment_.completions(), id_, std::move(handler));
  }
  // For callbacks that the core gets before, and keeps longer than, the rest of this object lives.
  template <typename Handler>
  static void post_to(const std::shared_ptr<Completions>& queue, std::uint64_t id, Handler handler) {
    queue->post([id, handler = std::move(handler)](Environment& environment) {
      if (OpenObject* object = environment.find(id)) handler(*static_cast<T*>(object));
    });
  }

  // One operation at a time: the core asserts it, JavaScript gets an error.
  void require_idle(const char* doing) const {
    if (!environment_.is_pending(operation_)) return;
    throw Error("ERR_COLO_BUSY", 0, std::string(T::kName) + " is busy and can't " + doing);
  }

  // `start(operation)` begins an operation of the core that calls operation.settle once. Returns its promise.
  template <typename Start>
  Napi::Value run(Napi::Env env, const Start& start, Napi::Function progress = {}) {
    const Environment::Operation operation = environment_.begin(env, progress);
    operation_ = operation.id;
    try {
      start(operation);
    } catch (...) {
      environment_.cancel(operation.id);
      throw;
    }
    return operation.promise;
  }

  Environment& environment_;
  const std::uint64_t id_;
  std::uint64_t operation_ = 0;

 private:
  template <Napi::Value (T::*body)(const Napi::CallbackInfo&)>
  Napi::Value call(const Napi::CallbackInfo& info) {
    return guard(info.Env(), [&] {
      if (!open_) throw Error("ERR_COLO_CLOSED", 0, std::string(T::kName) + " is closed");
      return (static_cast<T*>(this)->*body)(info);
    });
  }

  void close(const Napi::CallbackInfo&) { end(); }

  bool open_ = false;
};

}  // namespace colo::addon
