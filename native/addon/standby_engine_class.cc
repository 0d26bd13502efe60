#include <memory>
#include <string>
#include <utility>

#include "../core/acceptor.h"
#include "../core/standby_engine.h"
#include "classes.h"
#include "handle.h"
#include "results.h"

namespace colo::addon {
namespace {

constexpr std::size_t kTokenBytes = 16;
constexpr std::uint64_t kConnectionsMax = 16;  // docs/protocol.md, HELLO

class StandbyEngineHandle : public Handle<StandbyEngineHandle> {
 public:
  static constexpr const char* kName = "StandbyEngine";
  static constexpr napi_type_tag kTag = {0x93d6b1f84c2e4a70, 0x8e57d20a6cf94b13};

  static Napi::Function define(Napi::Env env) {
    using Self = StandbyEngineHandle;
    return DefineClass(
        env, kName,
        {method<&Self::open_session>("openSession"), method<&Self::add_connection>("addConnection"),
         method<&Self::open_epoch>("openEpoch"), method<&Self::commit>("commit"),
         method<&Self::restore_preserved>("restorePreserved"), method<&Self::sync_disks>("syncDisks"),
         method<&Self::close_session>("closeSession"), close_method()});
  }

  explicit StandbyEngineHandle(const Napi::CallbackInfo& info) : Handle(info) {
    guard(info.Env(), [&] {
      const Argument options = argument(info, 0, "options");
      on_staged_ = Napi::Persistent(options.property("onStaged").function());
      on_failed_ = Napi::Persistent(options.property("onFailed").function());
      mailbox_ = options.property("mailboxFd").duplicate();
      StandbyOptions core;
      core.pid = options.property("pid").integer_as<pid_t>(1);
      core.blocks = options.property("blocks").ram_blocks();
      core.mailbox_fd = mailbox_.get();
      core.mailbox_state_offset = options.property("mailboxStateOffset").integer();
      core.mailbox_state_bytes = options.property("mailboxStateBytes").integer(1);
      core.machine = options.property("machine").text();
      core.preserved = options.property("preserved").preserved_ranges();
      core.disks = options.property("disks").standby_disks();
      core.staging_limit_bytes = options.property("stagingLimitBytes").integer();
      engine_ = std::make_unique<StandbyEngine>(core, events());
    });
    opened();
  }

  void shut_down() override {
    engine_->close();
    engine_.reset();
    mailbox_.reset();  // not only when the garbage collector comes to it: each session has one
  }

 private:
  StandbyEngine::Events events() const {
    const auto queue = environment_.completions();
    const std::uint64_t id = id_;
    return {[queue, id](StagedCheckpoint checkpoint) {
              post_to(queue, id, [checkpoint](StandbyEngineHandle& self) {
                self.on_staged_.Call({to_js(self.Env(), checkpoint)});
              });
            },
            [queue, id](const Error& error) {
              post_to(queue, id, [error](StandbyEngineHandle& self) {
                self.on_failed_.Call({to_js(self.Env(), error).Value()});
              });
            }};
  }

  Napi::Value open_session(const Napi::CallbackInfo& info) {
    const std::string token = argument(info, 0, "token").bytes(kTokenBytes);
    const std::uint64_t generation = argument(info, 1, "generation").integer();
    engine_->open_session(
        token, generation,
        static_cast<unsigned>(argument(info, 2, "connections").integer(1, kConnectionsMax)));
    return info.Env().Undefined();
  }

  Napi::Value add_connection(const Napi::CallbackInfo& info) {
    const std::string preface = argument(info, 1, "preface").bytes(kPrefaceBytes);
    engine_->add_connection(take_peer_connection(argument(info, 0, "connection")), preface);
    return info.Env().Undefined();
  }

  Napi::Value open_epoch(const Napi::CallbackInfo& info) {
    engine_->open_epoch(argument(info, 0, "epoch").integer(1));
    return info.Env().Undefined();
  }

  Napi::Value commit(const Napi::CallbackInfo& info) {
    const std::uint64_t epoch = argument(info, 0, "epoch").integer(1);
    require_idle("commit");
    return run(info.Env(), [&](const Environment::Operation& operation) {
      engine_->commit(epoch, [settle = operation.settle](const Error* error, CommitResult result) {
        settle(error, [result](Napi::Env env) { return to_js(env, result); });
      });
    });
  }

  Napi::Value sync_disks(const Napi::CallbackInfo& info) {
    require_idle("syncDisks");
    return run(info.Env(),
               [&](const Environment::Operation& operation) { engine_->sync_disks(settled_by(operation)); });
  }

  static StandbyEngine::Done settled_by(const Environment::Operation& operation) {
    return [settle = operation.settle](const Error* error) {
      settle(error, [](Napi::Env env) { return env.Undefined(); });
    };
  }

  Napi::Value restore_preserved(const Napi::CallbackInfo& info) {
    require_idle("restorePreserved");
    engine_->restore_preserved();
    return info.Env().Undefined();
  }

  Napi::Value close_session(const Napi::CallbackInfo& info) {
    engine_->close_session();
    return info.Env().Undefined();
  }

  Napi::FunctionReference on_staged_, on_failed_;
  UniqueFd mailbox_;  // the core doesn't own its mailbox's descriptor
  std::unique_ptr<StandbyEngine> engine_;
};

}  // namespace

Napi::Function define_standby_engine(Napi::Env env) { return StandbyEngineHandle::define(env); }

}  // namespace colo::addon
