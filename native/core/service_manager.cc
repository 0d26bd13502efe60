#include "service_manager.h"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>

#include "error.h"
#include "unique_fd.h"

namespace colo {

void notify_service_manager(const std::string& socket, const std::string& message) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const bool known = socket.size() > 1 && (socket[0] == '/' || socket[0] == '@');
  if (!known || socket.size() >= sizeof address.sun_path || socket.find('\0') != std::string::npos) {
    throw Error("ERR_COLO_SOCKET", EINVAL,
                "NOTIFY_SOCKET, the service manager's, is an absolute path or @name of at most " +
                    std::to_string(sizeof address.sun_path - 1) + " bytes, not '" + socket + "'");
  }
  std::copy(socket.begin(), socket.end(), address.sun_path);
  if (socket[0] == '@') address.sun_path[0] = '\0';
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket.size());
  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!fd) throw_errno("ERR_COLO_SOCKET", "socket");
  const ssize_t sent = ::sendto(fd.get(), message.data(), message.size(), MSG_NOSIGNAL | MSG_DONTWAIT,
                                reinterpret_cast<const sockaddr*>(&address), length);
  if (sent < 0) throw_errno("ERR_COLO_SOCKET", "can't notify the service manager at " + socket);
}

}  // namespace colo
