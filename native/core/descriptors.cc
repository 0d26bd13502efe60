#include "descriptors.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "error.h"

namespace colo {
namespace {

constexpr std::size_t kFdsMax = 253;  // SCM_MAX_FD, unix(7)
constexpr int kSocketBufferBytes = 4 << 20;

// As far as the kernel lets us: beyond net.core.wmem_max only with CAP_NET_ADMIN. A smaller buffer costs
// wake-ups, nothing else.
void enlarge_send_buffer(int fd) {
  if (::setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &kSocketBufferBytes, sizeof kSocketBufferBytes) == 0)
    return;
  if (::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBufferBytes, sizeof kSocketBufferBytes) < 0) {
    throw_errno("ERR_COLO_SOCKET", "SO_SNDBUF");
  }
}

void wait_writable(int fd, const char* what) {
  pollfd wait{.fd = fd, .events = POLLOUT, .revents = 0};
  const int ready = ::poll(&wait, 1, kSendTimeoutMs);
  if (ready > 0 || (ready < 0 && errno == EINTR)) return;
  if (ready == 0) errno = ETIMEDOUT;
  throw_errno("ERR_COLO_SOCKET", what);
}

sockaddr_un unix_address(const std::string& path, const char* doing) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path || path.find('\0') != std::string::npos) {
    throw Error("ERR_COLO_SOCKET", ENAMETOOLONG,
                std::string("can't ") + doing + " '" + path + "': a unix socket's path has 1 to " +
                    std::to_string(sizeof address.sun_path - 1) + " bytes");
  }
  std::copy(path.begin(), path.end(), address.sun_path);
  return address;
}

}  // namespace

UniqueFd listen_unix(const std::string& path) {
  const sockaddr_un address = unix_address(path, "listen at");
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!fd) throw_errno("ERR_COLO_SOCKET", "socket");
  if (::bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0 ||
      ::listen(fd.get(), SOMAXCONN) < 0) {
    throw_errno("ERR_COLO_SOCKET", "can't listen at " + path);
  }
  return fd;
}

UniqueFd connect_unix(const std::string& path) {
  const sockaddr_un address = unix_address(path, "connect to");
  UniqueFd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) throw_errno("ERR_COLO_SOCKET", "socket");
  // Non-blocking on a unix socket never means "in progress": it connects at once or, with a full backlog, not
  // at all (connect(2), EAGAIN).
  if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) < 0) {
    const bool busy = errno == EAGAIN;
    throw_errno("ERR_COLO_SOCKET",
                "can't connect to " + path + (busy ? " (its listener is busy with another client)" : ""));
  }
  return fd;
}

// The kernel's limit, NGROUPS_MAX.
constexpr std::size_t kGroupsMax = 65536;

PeerCredentials peer_credentials(int fd) {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &length) < 0) {
    throw_errno("ERR_COLO_SOCKET", "can't tell the process at the socket's other end");
  }
  std::vector<gid_t> groups(kGroupsMax);
  length = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
  if (::getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &length) < 0)
    throw_errno("ERR_COLO_SOCKET", "can't tell the groups of the process at the socket's other end");
  groups.resize(length / sizeof(gid_t));
  return {credentials.pid, credentials.uid, credentials.gid, std::move(groups)};
}

void send_with_fds(int socket, std::span<const std::uint8_t> bytes, std::span<const int> fds) {
  constexpr const char* kWhat = "can't send descriptors";
  if (bytes.empty() || fds.size() > kFdsMax) {
    throw Error("ERR_COLO_SOCKET", EINVAL, "descriptors go with at least one byte, 253 at most at once");
  }
  alignas(cmsghdr) std::byte control[CMSG_SPACE(kFdsMax * sizeof(int))] = {};
  std::size_t sent = 0;
  while (sent < bytes.size()) {
    iovec piece{const_cast<std::uint8_t*>(bytes.data()) + sent, bytes.size() - sent};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    if (sent == 0 && !fds.empty()) {
      message.msg_control = control;
      message.msg_controllen = CMSG_SPACE(fds.size_bytes());
      cmsghdr* header = CMSG_FIRSTHDR(&message);
      header->cmsg_level = SOL_SOCKET;
      header->cmsg_type = SCM_RIGHTS;
      header->cmsg_len = CMSG_LEN(fds.size_bytes());
      std::memcpy(CMSG_DATA(header), fds.data(), fds.size_bytes());
    }
    const ssize_t step = ::sendmsg(socket, &message, MSG_NOSIGNAL);
    if (step >= 0) {
      sent += static_cast<std::size_t>(step);
    } else if (errno == EAGAIN) {
      wait_writable(socket, kWhat);
    } else if (errno != EINTR) {
      throw_errno("ERR_COLO_SOCKET", kWhat);
    }
  }
}

std::pair<UniqueFd, UniqueFd> stream_socket_pair() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) {
    throw_errno("ERR_COLO_SOCKET", "socketpair");
  }
  std::pair<UniqueFd, UniqueFd> fds{UniqueFd(pair[0]), UniqueFd(pair[1])};
  enlarge_send_buffer(pair[0]);
  enlarge_send_buffer(pair[1]);
  return fds;
}

MemoryFile make_memory_file(const std::string& name) {
  MemoryFile file;
  file.read_write.reset(::memfd_create(name.c_str(), MFD_CLOEXEC));
  if (!file.read_write) throw_errno("ERR_COLO_MEMORY_FILE", "memfd_create");
  const std::string path = "/proc/self/fd/" + std::to_string(file.read_write.get());
  file.write_only.reset(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  if (!file.write_only) throw_errno("ERR_COLO_MEMORY_FILE", "can't open " + path + " for writing");
  return file;
}

void rewind_memory_file(int read_write, int write_only) {
  if (::ftruncate(read_write, 0) < 0) throw_errno("ERR_COLO_MEMORY_FILE", "ftruncate");
  if (::lseek(write_only, 0, SEEK_SET) < 0) throw_errno("ERR_COLO_MEMORY_FILE", "lseek");
}

UniqueFd duplicate_foreign_fd(pid_t pid, int fd) {
  const std::string what = "descriptor " + std::to_string(fd) + " of process " + std::to_string(pid);
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process) throw_errno("ERR_COLO_DESCRIPTOR", "can't reach " + what);
  UniqueFd ours(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), fd, 0)));
  if (!ours) throw_errno("ERR_COLO_DESCRIPTOR", "can't duplicate " + what);
  return ours;
}

}  // namespace colo
