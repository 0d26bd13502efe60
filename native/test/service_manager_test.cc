#include "../core/service_manager.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <string>

#include "../core/error.h"
#include "../core/unique_fd.h"

namespace colo {
namespace {

class DatagramSocket {
 public:
  explicit DatagramSocket(const std::string& name) : fd_(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::copy(name.begin(), name.end(), address.sun_path);
    if (name[0] == '@') address.sun_path[0] = '\0';
    const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + name.size());
    if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), length) < 0) std::abort();
  }
  std::string receive() {
    char bytes[256];
    const ssize_t count = ::recv(fd_.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    return count < 0 ? "nothing" : std::string(bytes, static_cast<std::size_t>(count));
  }

 private:
  UniqueFd fd_;
};

std::string error_text(const std::string& socket) {
  try {
    notify_service_manager(socket, "READY=1");
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_SOCKET");
    return error.what();
  }
  return "sent";
}

TEST(ServiceManager, IsToldAtAPath) {
  const std::string path = "/tmp/colo-notify-" + std::to_string(::getpid());
  {
    DatagramSocket manager(path);
    notify_service_manager(path, "READY=1\nSTATUS=two VMs");
    EXPECT_EQ(manager.receive(), "READY=1\nSTATUS=two VMs");
    EXPECT_EQ(manager.receive(), "nothing");
  }
  ::unlink(path.c_str());
  EXPECT_NE(error_text(path).find(path), std::string::npos);
}

TEST(ServiceManager, IsToldInTheAbstractNamespace) {
  const std::string name = "@colo-notify-" + std::to_string(::getpid());
  DatagramSocket manager(name);
  notify_service_manager(name, "WATCHDOG=1");
  EXPECT_EQ(manager.receive(), "WATCHDOG=1");
}

TEST(ServiceManager, ThatReadsNothingStopsNobody) {
  const std::string name = "@colo-notify-full-" + std::to_string(::getpid());
  DatagramSocket manager(name);
  std::string text = "sent";
  for (int i = 0; i < 100000 && text == "sent"; ++i) text = error_text(name);
  EXPECT_NE(text, "sent");
}

TEST(ServiceManager, OfAnOddNameIsRefused) {
  for (const std::string& name : {std::string(), std::string("relative"), std::string("@"),
                                  "/" + std::string(200, 'x'), std::string("/a\0b", 4)}) {
    EXPECT_NE(error_text(name).find("NOTIFY_SOCKET"), std::string::npos) << name;
  }
}

}  // namespace
}  // namespace colo
