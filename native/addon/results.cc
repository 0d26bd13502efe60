#include "results.h"

#include <initializer_list>
#include <utility>

#include "../core/error.h"
#include "arguments.h"

namespace colo::addon {
namespace {

Napi::Object numbers(Napi::Env env, std::initializer_list<std::pair<const char*, std::uint64_t>> members) {
  const Napi::Object result = Napi::Object::New(env);
  for (const auto& [name, value] : members) {
    COLO_ASSERT(value <= kIntegerMax);
    result.Set(name, Napi::Number::New(env, static_cast<double>(value)));
  }
  return result;
}

}  // namespace

Napi::Value to_js(Napi::Env env, const DirtyRateRound& round) {
  return numbers(env, {{"windowUs", round.window_us},
                       {"dirtyPages", round.dirty_pages},
                       {"scanUs", round.scan_us},
                       {"sampledPages", round.sampled_pages},
                       {"sampledBytes", round.sampled_bytes},
                       {"zeroPages", round.sampled.zero},
                       {"unchangedPages", round.sampled.unchanged},
                       {"deltaPages", round.sampled.delta},
                       {"rawPages", round.sampled.raw},
                       {"copyUs", round.copy_us},
                       {"encodeUs", round.encode_us}});
}

Napi::Value to_js(Napi::Env env, const DiskLogStats& stats, std::uint64_t clients) {
  return numbers(env, {{"loggedBytes", stats.logged_bytes},
                       {"writes", stats.writes},
                       {"clients", clients},
                       {"differingBlocks", stats.differing_blocks}});
}

Napi::Value to_js(Napi::Env env, const GateStats& stats) {
  const Napi::Object result = numbers(env, {{"heldFrames", stats.held_frames},
                                            {"heldBytes", stats.held_bytes},
                                            {"releasedFrames", stats.released_frames},
                                            {"releasedBytes", stats.released_bytes},
                                            {"droppedFrames", stats.dropped_frames}});
  result.Set("holding", stats.holding);
  return result;
}

Napi::Value to_js(Napi::Env env, const HeartbeatStats& stats) {
  const auto quantiles = [&](const HeartbeatQuantiles& of) {
    return numbers(env, {{"min", of.min}, {"p50", of.p50}, {"p99", of.p99}, {"max", of.max}});
  };
  const Napi::Object result = numbers(env, {{"sent", stats.sent}, {"received", stats.received}});
  result.Set("rttUs", quantiles(stats.rtt_us));
  result.Set("gapUs", quantiles(stats.gap_us));
  result.Set("realTime", stats.real_time);
  return result;
}

Napi::Value to_js(Napi::Env env, const TrackerInfo& info) {
  const Napi::Object result = Napi::Object::New(env);
  result.Set("kind", info.kind == TrackerKind::userfaultfd ? "userfaultfd" : "compare");
  result.Set("reason", info.reason);
  const Napi::Array access = Napi::Array::New(env, info.access.size());
  for (std::uint32_t i = 0; i < info.access.size(); ++i) {
    access.Set(i, info.access[i] == MemoryAccess::mapped ? "mapped" : "remote");
  }
  result.Set("access", access);
  return result;
}

Napi::Value to_js(Napi::Env env, const CaptureResult& result) {
  return numbers(env, {{"pages", result.pages},
                       {"diskBytes", result.disk_bytes},
                       {"beganUs", result.began_us},
                       {"sealUs", result.seal_us},
                       {"scanUs", result.scan_us},
                       {"copyUs", result.copy_us}});
}

Napi::Value to_js(Napi::Env env, const TransmitResult& result) {
  return numbers(env, {{"wireBytes", result.wire_bytes},
                       {"rawBytes", result.raw_bytes},
                       {"zeroPages", result.zero_pages},
                       {"unchangedPages", result.unchanged_pages},
                       {"deltaPages", result.delta_pages},
                       {"rawPages", result.raw_pages},
                       {"beganUs", result.began_us},
                       {"encodeUs", result.encode_us},
                       {"totalUs", result.total_us},
                       {"scrubCheckedPages", result.scrub_checked_pages},
                       {"scrubSkippedPages", result.scrub_skipped_pages},
                       {"scrubRounds", result.scrub_rounds},
                       {"scrubCpuUs", result.scrub_cpu_us}});
}

Napi::Value to_js(Napi::Env env, const SyncProgress& progress) {
  return numbers(env, {{"doneBytes", progress.done_bytes},
                       {"totalBytes", progress.total_bytes},
                       {"wireBytes", progress.wire_bytes}});
}

Napi::Value to_js(Napi::Env env, const StagedCheckpoint& checkpoint) {
  return numbers(env, {{"epoch", checkpoint.epoch},
                       {"pages", checkpoint.pages},
                       {"wireBytes", checkpoint.wire_bytes},
                       {"vmstateBytes", checkpoint.vmstate_bytes},
                       {"diskBytes", checkpoint.disk_bytes},
                       {"beganUs", checkpoint.began_us},
                       {"receivedUs", checkpoint.received_us}});
}

Napi::Value to_js(Napi::Env env, const CommitResult& result) {
  return numbers(env, {{"beganUs", result.began_us},
                       {"ramUs", result.ram_us},
                       {"disksUs", result.disks_us},
                       {"mailboxUs", result.mailbox_us},
                       {"scrubUs", result.scrub_us},
                       {"scrubbedPages", result.scrubbed_pages}});
}

}  // namespace colo::addon
