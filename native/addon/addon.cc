// The addon's entry: one call per JavaScript environment that loads it.
#include <napi.h>

#include "classes.h"
#include "environment.h"

namespace colo::addon {
namespace {

Napi::Object initialize(Napi::Env env, Napi::Object exports) {
  Environment::create(env);
  exports.Set("Acceptor", define_acceptor(env));
  exports.Set("DirtyRateProbe", define_dirty_rate_probe(env));
  exports.Set("DiskExport", define_disk_export(env));
  exports.Set("Heartbeat", define_heartbeat(env));
  exports.Set("OutputGate", define_output_gate(env));
  exports.Set("PeerConnection", define_peer_connection(env));
  exports.Set("PrimaryEngine", define_primary_engine(env));
  exports.Set("ProcessWatch", define_process_watch(env));
  exports.Set("StandbyEngine", define_standby_engine(env));
  exports.Set("TlsCredentials", define_tls_credentials(env));
  exports.Set("Watchdog", define_watchdog(env));
  define_descriptors(env, exports);
  define_security(env, exports);
  return exports;
}

NODE_API_MODULE(colo_agent, initialize)

}  // namespace
}  // namespace colo::addon
