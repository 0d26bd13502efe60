// What systemd's sd_notify(3) does, without its library: Node.js has no unix datagram sockets.
#pragma once

#include <string>

namespace colo {

// Sends one datagram to the service manager's socket: a path, or "@name" of the abstract namespace. Never
// waits: the event loop calls it, which a service manager that reads nothing must not stop. Throws
// ERR_COLO_SOCKET with the socket's name in its text.
void notify_service_manager(const std::string& socket, const std::string& message);

}  // namespace colo
