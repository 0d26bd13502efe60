// A real QEMU with its monitor, for tests.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../core/descriptors.h"
#include "../core/unique_fd.h"
#include "child_process.h"

namespace colo::testing {

// Stopped at its first instruction (-S), without any default device.
class Qemu {
 public:
  explicit Qemu(std::vector<std::string> arguments, uid_t uid = 0) {
    EXPECT_NE(::mkdtemp(folder_.data()), nullptr);
    EXPECT_EQ(::chown(folder_.c_str(), uid, uid), 0);
    process_ = std::make_unique<ChildProcess>([&](int) { return execute(arguments, uid); });
    EXPECT_TRUE(wait_until([&] { return connect_qmp(); })) << "is qemu-system-x86_64 installed?";
    EXPECT_NE(read_line().find("\"QMP\""), std::string::npos);
    succeed("qmp_capabilities");
  }
  ~Qemu() {
    process_.reset();
    std::filesystem::remove_all(folder_);
  }

  pid_t pid() const { return process_->pid(); }
  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  // The answer to one command; events that come before it are kept for wait_event().
  std::string ask(const std::string& command, std::span<const int> fds = {}) {
    send_with_fds(qmp_.get(), {reinterpret_cast<const std::uint8_t*>(command.data()), command.size()}, fds);
    for (;;) {
      const std::string line = read_line();
      if (line.empty() || line.find("\"event\"") == std::string::npos) return line;
      events_.push_back(line);
    }
  }

  // `arguments` is a JSON object, or empty.
  std::string succeed(const std::string& command, const std::string& arguments = "",
                      std::span<const int> fds = {}) {
    const std::string rest = arguments.empty() ? "" : R"(,"arguments":)" + arguments;
    const std::string answer = ask(R"({"execute":")" + command + "\"" + rest + "}", fds);
    EXPECT_NE(answer.find("\"return\""), std::string::npos) << command << ": " << answer;
    return answer;
  }
  // Keeps `fd` under `name`; ours may be closed afterwards.
  void pass_fd(const std::string& name, const UniqueFd& fd) {
    const int number = fd.get();
    succeed("getfd", R"({"fdname":")" + name + R"("})", {&number, 1});
  }

  void wait_event(const std::string& name) {
    const std::string quoted = "\"" + name + "\"";
    for (std::size_t i = 0;; ++i) {
      if (i == events_.size()) events_.push_back(read_line());
      if (events_[i].empty()) {
        ADD_FAILURE() << "QEMU has gone before the event " << name;
        return;
      }
      if (events_[i].find(quoted) == std::string::npos) continue;
      events_.erase(events_.begin() + static_cast<std::ptrdiff_t>(i));
      return;
    }
  }

 private:
  int execute(std::vector<std::string> arguments, uid_t uid) {
    const int log = ::open(path("log").c_str(), O_WRONLY | O_CREAT, 0666);
    ::dup2(log, STDOUT_FILENO);
    ::dup2(log, STDERR_FILENO);
    if (uid != 0 && (::setgid(uid) != 0 || ::setuid(uid) != 0)) return 1;
    for (const char* each : {"-S", "-nodefaults", "-display", "none", "-qmp"}) arguments.emplace_back(each);
    arguments.push_back("unix:" + path("qmp") + ",server=on,wait=off");
    arguments.insert(arguments.begin(), "qemu-system-x86_64");
    std::vector<char*> pointers;
    for (std::string& argument : arguments) pointers.push_back(argument.data());
    pointers.push_back(nullptr);
    ::execvp(pointers[0], pointers.data());
    return 127;
  }

  bool connect_qmp() {
    qmp_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path("qmp").copy(address.sun_path, sizeof address.sun_path - 1);
    return ::connect(qmp_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }

  std::string read_line() {
    std::string line;
    for (char c; ::recv(qmp_.get(), &c, 1, 0) == 1 && c != '\n';) line += c;
    return line;
  }

  std::string folder_ = "/tmp/colo-qemu-XXXXXX";
  std::unique_ptr<ChildProcess> process_;
  UniqueFd qmp_;
  std::vector<std::string> events_;  // not yet waited for
};

}  // namespace colo::testing
