#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "../core/primary_engine.h"
#include "classes.h"
#include "handle.h"
#include "results.h"

namespace colo::addon {
namespace {

constexpr std::size_t kTokenBytes = 16;
constexpr std::uint64_t kConnectionsMax = 16;  // docs/protocol.md, HELLO

PrimaryOptions::Tracker tracker_of(const Argument& argument) {
  const std::string name = argument.text();
  if (name == "auto") return PrimaryOptions::Tracker::automatic;
  if (name == "userfaultfd") return PrimaryOptions::Tracker::userfaultfd;
  if (name == "compare") return PrimaryOptions::Tracker::compare;
  argument.fail("'auto', 'userfaultfd' or 'compare'");
}

PrimaryOptions options_of(const Argument& options) {
  PrimaryOptions result;
  result.pid = options.property("pid").integer_as<pid_t>(1);
  result.blocks = options.property("blocks").ram_blocks();
  result.threads = static_cast<unsigned>(options.property("threads").integer(1, 64));
  result.shadow = options.property("shadow").boolean();
  result.tracker = tracker_of(options.property("tracker"));
  result.staging_resident_bytes = options.property("stagingResidentBytes").integer();
  result.scrub_slice_bytes = options.property("scrubSliceBytes").integer();
  result.disks = disk_exports(options.property("disks"));
  return result;
}

std::vector<bool> booleans(const Argument& argument, std::size_t exactly) {
  const Napi::Array list = argument.array();
  if (list.Length() != exactly) argument.fail("an array of " + std::to_string(exactly) + " booleans");
  std::vector<bool> result;
  for (std::uint32_t i = 0; i < list.Length(); ++i)
    result.push_back(Argument{list.Get(i), argument.name + "[" + std::to_string(i) + "]"}.boolean());
  return result;
}

class PrimaryEngineHandle : public Handle<PrimaryEngineHandle> {
 public:
  static constexpr const char* kName = "PrimaryEngine";
  static constexpr napi_type_tag kTag = {0x18fa7d20c6534be9, 0xb5e03c9471d82f6e};

  static Napi::Function define(Napi::Env env) {
    using Self = PrimaryEngineHandle;
    return DefineClass(
        env, kName,
        {method<&Self::info>("info"), method<&Self::protect>("protect"), method<&Self::connect>("connect"),
         method<&Self::disconnect>("disconnect"), method<&Self::sync_disks>("syncDisks"),
         method<&Self::hurry>("hurry"), method<&Self::confirm>("confirm"), method<&Self::sync>("sync"),
         method<&Self::capture>("capture"), method<&Self::transmit>("transmit"),
         method<&Self::abandon>("abandon"), close_method()});
  }

  explicit PrimaryEngineHandle(const Napi::CallbackInfo& info) : Handle(info) {
    guard(info.Env(), [&] {
      const PrimaryOptions options = options_of(argument(info, 0, "options"));
      disks_ = options.disks.size();
      engine_ = std::make_unique<PrimaryEngine>(options);
    });
    opened();
  }

  void shut_down() override {
    engine_->close();
    engine_.reset();
  }

 private:
  static PrimaryEngine::Done done(const Environment::Operation& operation) {
    return [settle = operation.settle](const Error* error) {
      settle(error, [](Napi::Env env) { return env.Undefined(); });
    };
  }

  Napi::Value info(const Napi::CallbackInfo& info) { return to_js(info.Env(), engine_->info()); }

  Napi::Value protect(const Napi::CallbackInfo& info) {
    require_idle("protect");
    return run(info.Env(),
               [&](const Environment::Operation& operation) { engine_->protect(done(operation)); });
  }

  Napi::Value connect(const Napi::CallbackInfo& info) {
    const std::string host = argument(info, 0, "host").text();
    const auto port = argument(info, 1, "port").integer_as<std::uint16_t>(1);
    const std::string token = argument(info, 2, "token").bytes(kTokenBytes);
    const std::uint64_t generation = argument(info, 3, "generation").integer();
    const auto connections =
        static_cast<unsigned>(argument(info, 4, "connections").integer(1, kConnectionsMax));
    const std::shared_ptr<const TlsCredentials> credentials =
        credentials_or_null(argument(info, 5, "credentials"));
    require_idle("connect");
    return run(info.Env(), [&](const Environment::Operation& operation) {
      engine_->connect(host, port, token, generation, connections, credentials, done(operation));
    });
  }

  Napi::Value disconnect(const Napi::CallbackInfo& info) {
    engine_->disconnect();
    return info.Env().Undefined();
  }

  static std::function<void(SyncProgress)> report_progress(Environment& environment,
                                                           const Environment::Operation& operation) {
    return [queue = environment.completions(), id = operation.id](SyncProgress at) {
      queue->post([id, at](Environment& reached) {
        reached.report(id, [at](Napi::Env env) { return to_js(env, at); });
      });
    };
  }

  Napi::Value sync_disks(const Napi::CallbackInfo& info) {
    const std::vector<bool> all_differ = booleans(argument(info, 0, "allDiffer"), disks_);
    const std::uint64_t bytes_per_second = argument(info, 1, "bytesPerSecond").integer();
    const Napi::Function on_progress = argument(info, 2, "onProgress").function();
    require_idle("syncDisks");
    const auto start = [&](const Environment::Operation& operation) {
      engine_->sync_disks(all_differ, bytes_per_second, report_progress(environment_, operation),
                          done(operation));
    };
    return run(info.Env(), start, on_progress);
  }

  Napi::Value hurry(const Napi::CallbackInfo& info) {
    engine_->hurry();
    return info.Env().Undefined();
  }

  Napi::Value confirm(const Napi::CallbackInfo& info) {
    engine_->confirm(argument(info, 0, "epoch").integer(1));
    return info.Env().Undefined();
  }

  Napi::Value sync(const Napi::CallbackInfo& info) {
    const std::uint64_t bytes_per_second = argument(info, 0, "bytesPerSecond").integer();
    const Napi::Function on_progress = argument(info, 1, "onProgress").function();
    require_idle("sync");
    const auto start = [&](const Environment::Operation& operation) {
      engine_->sync(bytes_per_second, report_progress(environment_, operation), done(operation));
    };
    return run(info.Env(), start, on_progress);
  }

  Napi::Value capture(const Napi::CallbackInfo& info) {
    const std::uint64_t epoch = argument(info, 0, "epoch").integer(1);
    const std::shared_ptr<OutputGate> gate = gate_or_null(argument(info, 1, "gate"));
    require_idle("capture");
    return run(info.Env(), [&](const Environment::Operation& operation) {
      // Holding `gate` keeps it alive until then, also when JavaScript closes it meanwhile.
      engine_->capture(epoch, gate.get(),
                       [gate, settle = operation.settle](const Error* error, CaptureResult result) {
                         settle(error, [result](Napi::Env env) { return to_js(env, result); });
                       });
    });
  }

  Napi::Value transmit(const Napi::CallbackInfo& info) {
    const std::uint64_t epoch = argument(info, 0, "epoch").integer(1);
    const auto vmstate = std::make_shared<UniqueFd>(argument(info, 1, "vmstateFd").duplicate());
    require_idle("transmit");
    return run(info.Env(), [&](const Environment::Operation& operation) {
      engine_->transmit(epoch, vmstate->get(),
                        [vmstate, settle = operation.settle](const Error* error, TransmitResult result) {
                          settle(error, [result](Napi::Env env) { return to_js(env, result); });
                        });
    });
  }

  Napi::Value abandon(const Napi::CallbackInfo& info) {
    require_idle("abandon a capture");
    engine_->abandon();
    return info.Env().Undefined();
  }

  std::size_t disks_ = 0;
  std::unique_ptr<PrimaryEngine> engine_;
};

}  // namespace

Napi::Function define_primary_engine(Napi::Env env) { return PrimaryEngineHandle::define(env); }

}  // namespace colo::addon
