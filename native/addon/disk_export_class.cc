#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "../core/disk_export.h"
#include "classes.h"
#include "handle.h"
#include "results.h"

namespace colo::addon {
namespace {

// A log below this could hold hardly more than one of QEMU's writes.
constexpr std::uint64_t kLogLimitBytesMin = 4u << 20;

class DiskExportHandle : public Handle<DiskExportHandle> {
 public:
  static constexpr const char* kName = "DiskExport";
  static constexpr napi_type_tag kTag = {0x5ae07c1b92f84d36, 0xb19c3f684e0da725};

  static Napi::Function define(Napi::Env env) {
    using Self = DiskExportHandle;
    return DefineClass(
        env, kName,
        {method<&Self::serve>("serve"), method<&Self::connect_source>("connectSource"),
         method<&Self::close_source>("closeSource"), method<&Self::stats>("stats"), close_method()});
  }

  explicit DiskExportHandle(const Napi::CallbackInfo& info) : Handle(info) {
    guard(info.Env(), [&] {
      const Argument argument_options = argument(info, 0, "options");
      on_pressure_ = Napi::Persistent(argument_options.property("onPressure").function());
      on_failed_ = Napi::Persistent(argument_options.property("onFailed").function());
      DiskLogOptions options;
      options.id = argument_options.property("id").text();
      options.size_bytes = argument_options.property("sizeBytes").integer(1);
      options.limit_bytes = argument_options.property("limitBytes").integer(kLogLimitBytesMin);
      options.pressure_bytes = argument_options.property("pressureBytes").integer(1, options.limit_bytes);
      export_ = std::make_shared<DiskExport>(options, events());
    });
    opened();
  }

  // An engine that holds the export too finds its sessions failed.
  void shut_down() override {
    export_->close();
    if (connector_.joinable()) connector_.join();
    export_.reset();
  }

  std::shared_ptr<DiskExport> disk_export() const { return export_; }

 private:
  DiskLog::Events events() const {
    const auto queue = environment_.completions();
    const std::uint64_t id = id_;
    return {[queue, id] { post_to(queue, id, [](DiskExportHandle& self) { self.on_pressure_.Call({}); }); },
            [queue, id](const std::string& reason) {
              post_to(queue, id, [reason](DiskExportHandle& self) {
                self.on_failed_.Call({Napi::String::New(self.Env(), reason)});
              });
            }};
  }

  Napi::Value serve(const Napi::CallbackInfo& info) {
    export_->serve(UniqueFd(argument(info, 0, "fd").descriptor()));
    return info.Env().Undefined();
  }

  // On a thread of its own, because it waits; it is rare.
  Napi::Value connect_source(const Napi::CallbackInfo& info) {
    UniqueFd socket(argument(info, 0, "fd").descriptor());
    const std::string name = argument(info, 1, "exportName").text();
    require_idle("connectSource");
    if (connector_.joinable()) connector_.join();
    const auto source = export_->begin_source(std::move(socket), name);
    return run(info.Env(), [&](const Environment::Operation& operation) {
      connector_ = std::thread([target = export_, source, settle = operation.settle] {
        const auto undefined = [](Napi::Env env) { return env.Undefined(); };
        try {
          target->connect_source(source);
          settle(nullptr, undefined);
        } catch (const Error& error) {
          settle(&error, undefined);
        } catch (const std::exception& thrown) {
          const Error error("ERR_COLO_RESOURCES", 0, thrown.what());
          settle(&error, undefined);
        }
      });
    });
  }

  Napi::Value close_source(const Napi::CallbackInfo& info) {
    export_->close_source();
    return info.Env().Undefined();
  }

  Napi::Value stats(const Napi::CallbackInfo& info) {
    return to_js(info.Env(), export_->log().stats(), export_->clients());
  }

  Napi::FunctionReference on_pressure_, on_failed_;
  std::shared_ptr<DiskExport> export_;
  std::thread connector_;
};

}  // namespace

Napi::Function define_disk_export(Napi::Env env) { return DiskExportHandle::define(env); }

std::vector<std::shared_ptr<DiskExport>> disk_exports(const Argument& argument) {
  const Napi::Array list = argument.array();
  std::vector<std::shared_ptr<DiskExport>> disks;
  for (std::uint32_t i = 0; i < list.Length(); ++i) {
    const Argument each{list.Get(i), argument.name + "[" + std::to_string(i) + "]"};
    const DiskExportHandle* handle = DiskExportHandle::unwrap(each.value);
    if (handle == nullptr) each.fail("a DiskExport");
    if (!handle->is_open()) throw Error("ERR_COLO_CLOSED", 0, "DiskExport is closed");
    if (std::find(disks.begin(), disks.end(), handle->disk_export()) != disks.end())
      each.fail("another DiskExport than those before it");
    disks.push_back(handle->disk_export());
  }
  if (disks.size() > UINT16_MAX) argument.fail("an array of at most 65535 disks");
  return disks;
}

}  // namespace colo::addon
