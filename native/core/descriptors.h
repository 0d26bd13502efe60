// Small descriptor services that Node.js lacks: unix sockets with peer credentials, SCM_RIGHTS, memfds.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "unique_fd.h"

namespace colo {

// Connects to a unix stream socket, non-blocking and CLOEXEC. Never waits. Throws ERR_COLO_SOCKET with the
// path in its text.
UniqueFd connect_unix(const std::string& path);

// Makes a unix stream socket that listens at `path`, CLOEXEC, for QEMU to accept on: a process that may open
// no path of ours can be given the descriptor. Who may connect is up to the path's folder. Throws
// ERR_COLO_SOCKET.
UniqueFd listen_unix(const std::string& path);

// The process that listens on the other end (SO_PEERCRED): for a QMP socket, QEMU itself. Throws
// ERR_COLO_SOCKET.
struct PeerCredentials {
  pid_t pid;
  uid_t uid;
  gid_t gid;
  std::vector<gid_t> groups;  // the supplementary ones
};
PeerCredentials peer_credentials(int fd);

// Writes all of `bytes` (at least one) to the unix socket with `fds` attached to the first byte (SCM_RIGHTS).
// Waits when the socket is full, each time for kSendTimeoutMs at most. Throws ERR_COLO_SOCKET.
inline constexpr int kSendTimeoutMs = 5000;
void send_with_fds(int socket, std::span<const std::uint8_t> bytes, std::span<const int> fds);

// A connected pair of unix stream sockets, both CLOEXEC and non-blocking, with large buffers. Throws
// ERR_COLO_SOCKET.
std::pair<UniqueFd, UniqueFd> stream_socket_pair();

// An anonymous file and, since QEMU's xen-save-devices-state opens its target O_WRONLY, a second descriptor
// of it opened so.
struct MemoryFile {
  UniqueFd read_write;
  UniqueFd write_only;
};
// Throws ERR_COLO_MEMORY_FILE.
MemoryFile make_memory_file(const std::string& name);

// Before each save into a MemoryFile: nothing else truncates it, and its write offset is shared with QEMU.
// Throws ERR_COLO_MEMORY_FILE.
void rewind_memory_file(int read_write, int write_only);

// A duplicate of another process's descriptor `fd`, with which it shares its offset (pidfd_getfd(2)),
// CLOEXEC. Throws ERR_COLO_DESCRIPTOR.
UniqueFd duplicate_foreign_fd(pid_t pid, int fd);

}  // namespace colo
