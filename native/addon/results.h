// The core's results as JavaScript objects, with the names of src/native/binding.ts.
#pragma once

#include <napi.h>

#include "../core/dirty_rate_probe.h"
#include "../core/disk_log.h"
#include "../core/heartbeat.h"
#include "../core/output_gate.h"
#include "../core/primary_engine.h"
#include "../core/standby_engine.h"

namespace colo::addon {

Napi::Value to_js(Napi::Env env, const DirtyRateRound& round);
Napi::Value to_js(Napi::Env env, const DiskLogStats& stats, std::uint64_t clients);
Napi::Value to_js(Napi::Env env, const GateStats& stats);
Napi::Value to_js(Napi::Env env, const HeartbeatStats& stats);
Napi::Value to_js(Napi::Env env, const TrackerInfo& info);
Napi::Value to_js(Napi::Env env, const CaptureResult& result);
Napi::Value to_js(Napi::Env env, const TransmitResult& result);
Napi::Value to_js(Napi::Env env, const SyncProgress& progress);
Napi::Value to_js(Napi::Env env, const StagedCheckpoint& checkpoint);
Napi::Value to_js(Napi::Env env, const CommitResult& result);

}  // namespace colo::addon
