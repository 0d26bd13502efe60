// What the addon exports, one function per class and one for the descriptor services.
#pragma once

#include <napi.h>

#include <memory>
#include <vector>

#include "../core/connection.h"
#include "../core/disk_export.h"
#include "../core/output_gate.h"
#include "../core/tls_credentials.h"
#include "arguments.h"

namespace colo::addon {

Napi::Function define_acceptor(Napi::Env env);
Napi::Function define_dirty_rate_probe(Napi::Env env);
Napi::Function define_disk_export(Napi::Env env);
Napi::Function define_heartbeat(Napi::Env env);
Napi::Function define_output_gate(Napi::Env env);
Napi::Function define_peer_connection(Napi::Env env);
Napi::Function define_primary_engine(Napi::Env env);
Napi::Function define_process_watch(Napi::Env env);
Napi::Function define_standby_engine(Napi::Env env);
Napi::Function define_tls_credentials(Napi::Env env);
Napi::Function define_watchdog(Napi::Env env);
void define_descriptors(Napi::Env env, Napi::Object exports);
void define_security(Napi::Env env, Napi::Object exports);

// The gate behind an argument; nullptr for null. Whoever holds it may use it on any thread: once JavaScript
// has closed it, it throws ERR_COLO_CLOSED.
std::shared_ptr<OutputGate> gate_or_null(const Argument& argument);

// The exports behind an array argument; whoever holds them may use them on any thread: once JavaScript has
// closed one, its sessions fail.
std::vector<std::shared_ptr<DiskExport>> disk_exports(const Argument& argument);

// The credentials behind an argument; nullptr for null, which is plain text.
std::shared_ptr<const TlsCredentials> credentials_or_null(const Argument& argument);

// A JavaScript object that owns the connection.
Napi::Object new_peer_connection(Napi::Env env, Connection connection);
bool is_peer_connection(const Argument& argument);
// Takes the connection out of such an object, which is closed by that.
Connection take_peer_connection(const Argument& argument);

}  // namespace colo::addon
