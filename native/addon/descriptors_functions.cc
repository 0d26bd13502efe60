#include <unistd.h>

#include <vector>

#include "../core/descriptors.h"
#include "../core/eventfd_kick.h"
#include "../core/memory_keeper.h"
#include "../core/service_manager.h"
#include "../core/zero_file.h"
#include "classes.h"
#include "errors.h"

namespace colo::addon {
namespace {

Napi::Number number(Napi::Env env, std::int64_t value) {
  return Napi::Number::New(env, static_cast<double>(value));
}

Napi::Value connect_unix_function(const Napi::CallbackInfo& info) {
  return number(info.Env(), connect_unix(argument(info, 0, "path").text()).release());
}

Napi::Value listen_unix_function(const Napi::CallbackInfo& info) {
  return number(info.Env(), listen_unix(argument(info, 0, "path").text()).release());
}

Napi::Value peer_credentials_function(const Napi::CallbackInfo& info) {
  const PeerCredentials peer = peer_credentials(argument(info, 0, "fd").descriptor());
  const Napi::Object result = Napi::Object::New(info.Env());
  result.Set("pid", number(info.Env(), peer.pid));
  result.Set("uid", number(info.Env(), peer.uid));
  result.Set("gid", number(info.Env(), peer.gid));
  const Napi::Array groups = Napi::Array::New(info.Env(), peer.groups.size());
  for (std::uint32_t i = 0; i < peer.groups.size(); ++i) groups.Set(i, number(info.Env(), peer.groups[i]));
  result.Set("groups", groups);
  return result;
}

Napi::Value send_with_fds_function(const Napi::CallbackInfo& info) {
  const int socket = argument(info, 0, "socket").descriptor();
  const Argument list = argument(info, 2, "fds");
  const Napi::Array array = list.array();
  std::vector<int> fds;
  for (std::uint32_t i = 0; i < array.Length(); ++i) {
    fds.push_back(Argument{array.Get(i), list.name + "[" + std::to_string(i) + "]"}.descriptor());
  }
  send_with_fds(socket, argument(info, 1, "bytes").bytes(), fds);
  return info.Env().Undefined();
}

Napi::Value stream_socket_pair_function(const Napi::CallbackInfo& info) {
  auto [first, second] = stream_socket_pair();
  const Napi::Array result = Napi::Array::New(info.Env(), 2);
  result.Set(0u, number(info.Env(), first.release()));
  result.Set(1u, number(info.Env(), second.release()));
  return result;
}

Napi::Value make_memory_file_function(const Napi::CallbackInfo& info) {
  MemoryFile file = make_memory_file(argument(info, 0, "name").text());
  const Napi::Object result = Napi::Object::New(info.Env());
  result.Set("readWriteFd", number(info.Env(), file.read_write.release()));
  result.Set("writeOnlyFd", number(info.Env(), file.write_only.release()));
  return result;
}

Napi::Value rewind_memory_file_function(const Napi::CallbackInfo& info) {
  const Argument file = argument(info, 0, "file");
  rewind_memory_file(file.property("readWriteFd").descriptor(), file.property("writeOnlyFd").descriptor());
  return info.Env().Undefined();
}

Napi::Value duplicate_foreign_fd_function(const Napi::CallbackInfo& info) {
  const pid_t pid = argument(info, 0, "pid").integer_as<pid_t>(1);
  return number(info.Env(), duplicate_foreign_fd(pid, argument(info, 1, "fd").descriptor()).release());
}

Napi::Value reads_as_zeros_function(const Napi::CallbackInfo& info) {
  const int fd = argument(info, 0, "fd").descriptor();
  return Napi::Boolean::New(info.Env(), reads_as_zeros(fd, argument(info, 1, "readBytesMax").integer()));
}

Napi::Value kick_eventfds_function(const Napi::CallbackInfo& info) {
  return number(info.Env(),
                static_cast<std::int64_t>(kick_eventfds(argument(info, 0, "pid").integer_as<pid_t>(1))));
}

Napi::Value close_fd_function(const Napi::CallbackInfo& info) {
  const int fd = argument(info, 0, "fd").descriptor();
  if (::close(fd) < 0) throw_errno("ERR_COLO_DESCRIPTOR", "can't close descriptor " + std::to_string(fd));
  return info.Env().Undefined();
}

Napi::Value start_memory_keeper_function(const Napi::CallbackInfo& info) {
  return Napi::Boolean::New(info.Env(), start_memory_keeper());
}

Napi::Value notify_service_manager_function(const Napi::CallbackInfo& info) {
  notify_service_manager(argument(info, 0, "socket").text(), argument(info, 1, "message").text());
  return info.Env().Undefined();
}

template <Napi::Value (*body)(const Napi::CallbackInfo&)>
void define(Napi::Env env, Napi::Object exports, const char* name) {
  exports.Set(name, Napi::Function::New<guarded<body>>(env, name));
}

}  // namespace

void define_descriptors(Napi::Env env, Napi::Object exports) {
  define<connect_unix_function>(env, exports, "connectUnix");
  define<listen_unix_function>(env, exports, "listenUnix");
  define<peer_credentials_function>(env, exports, "peerCredentials");
  define<send_with_fds_function>(env, exports, "sendWithFds");
  define<stream_socket_pair_function>(env, exports, "streamSocketPair");
  define<make_memory_file_function>(env, exports, "makeMemoryFile");
  define<rewind_memory_file_function>(env, exports, "rewindMemoryFile");
  define<duplicate_foreign_fd_function>(env, exports, "duplicateForeignFd");
  define<reads_as_zeros_function>(env, exports, "readsAsZeros");
  define<kick_eventfds_function>(env, exports, "kickEventfds");
  define<close_fd_function>(env, exports, "closeFd");
  define<start_memory_keeper_function>(env, exports, "startMemoryKeeper");
  define<notify_service_manager_function>(env, exports, "notifyServiceManager");
}

}  // namespace colo::addon
