// Child processes that stand in for QEMU, for tests.
#pragma once

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "../core/unique_fd.h"

namespace colo::testing {

// Waits until `condition` holds; false when it doesn't within a minute, long on any machine.
inline bool wait_until(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::yield();
  }
  return true;
}

// A child that runs `body` with its end of a packet socket and exits with what it returns; an exception ends
// it by std::terminate(). It is killed by destruction.
class ChildProcess {
 public:
  explicit ChildProcess(const std::function<int(int socket)>& body) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) std::abort();
    pid_ = ::fork();
    if (pid_ < 0) std::abort();
    if (pid_ == 0) {
      ::close(pair[0]);
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      ::_exit([&]() noexcept { return body(pair[1]); }());
    }
    ::close(pair[1]);
    socket_.reset(pair[0]);
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess() { kill(); }

  pid_t pid() const { return pid_; }
  int socket() const { return socket_.get(); }

  template <typename T>
  void send(const T& message) {
    ASSERT_EQ(::send(socket_.get(), &message, sizeof message, MSG_NOSIGNAL),
              static_cast<ssize_t>(sizeof message));
  }

  // The next message, or T{} and a test failure when the child has died or sends something else.
  template <typename T>
  T receive() {
    T message{};
    EXPECT_EQ(::recv(socket_.get(), &message, sizeof message, 0), static_cast<ssize_t>(sizeof message));
    return message;
  }

  // Waits for its end and returns the status of waitpid().
  int wait() {
    int status = 0;
    EXPECT_EQ(::waitpid(pid_, &status, 0), pid_);
    pid_ = -1;
    return status;
  }

  void kill() {
    if (pid_ < 0) return;
    ::kill(pid_, SIGKILL);
    wait();
  }

 private:
  pid_t pid_ = -1;
  UniqueFd socket_;
};

// A field of /proc/PID/status, for instance "State" or "SigBlk", without the blank in front.
inline std::string status_field(pid_t pid, const std::string& name) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name + ":")) return line.substr(line.find_first_not_of(" \t", name.size() + 1));
  }
  return "";
}

// What a process has open, as "number -> target", sorted. One that is closed meanwhile isn't among them.
inline std::vector<std::string> open_descriptors(pid_t pid) {
  std::vector<std::string> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd")) {
    std::error_code error;
    const auto target = std::filesystem::read_symlink(entry.path(), error);
    if (error == std::errc::no_such_file_or_directory) continue;
    if (error) throw std::filesystem::filesystem_error("read_symlink", entry.path(), error);
    found.push_back(entry.path().filename().string() + " -> " + target.string());
  }
  std::sort(found.begin(), found.end());
  return found;
}

// True when some mapping of the process has a userfaultfd registered (VmFlags of proc_pid_smaps(5)).
inline bool has_userfaultfd_mappings(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/smaps");
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with("VmFlags:")) continue;
    line += ' ';
    if (line.find(" uw ") != std::string::npos || line.find(" um ") != std::string::npos) return true;
  }
  return false;
}

}  // namespace colo::testing
