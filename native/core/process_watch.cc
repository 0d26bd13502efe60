#include "process_watch.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "error.h"
#include "unique_fd.h"

namespace colo {

namespace {

constexpr unsigned kPidfdThread = O_EXCL;         // PIDFD_THREAD, which older headers lack
constexpr unsigned long kPfExiting = 0x00000004;  // PF_EXITING in the kernel's include/linux/sched.h
constexpr std::size_t kThreadsMax = 4;
constexpr int kEndOfOthersMs = 20;  // a killed thread's neighbours are killed with it, at the same moment

// Its first threads but the main one, whose end the kernel tells of last (pidfs, since Linux 6.15). QEMU's
// first live as long as QEMU. Several: the one that happens to end last takes the memory down, which is the
// work that needn't be waited for.
std::vector<UniqueFd> open_threads(pid_t pid) {
  std::vector<pid_t> threads;
  std::error_code gone;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", gone)) {
    const pid_t thread = std::stoi(entry.path().filename());
    if (thread != pid) threads.push_back(thread);
  }
  std::sort(threads.begin(), threads.end());
  std::vector<UniqueFd> opened;
  for (const pid_t thread : threads) {
    UniqueFd fd(static_cast<int>(::syscall(SYS_pidfd_open, thread, kPidfdThread)));
    if (fd) opened.push_back(std::move(fd));  // else an older kernel, or the thread has just ended
    if (opened.size() == kThreadsMax) break;
  }
  return opened;
}

bool is_exiting(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  return is_exiting_by_stat({std::istreambuf_iterator<char>(file), {}});
}

}  // namespace

bool is_exiting_by_stat(const std::string& stat) {
  // Fields 9 (flags) and 31 (its pending signals); the second, the name, may have anything in it.
  const std::size_t name_end = stat.rfind(')');
  if (name_end == std::string::npos) return stat.empty();
  std::istringstream rest(stat.substr(name_end + 1));
  const std::vector<std::string> fields{std::istream_iterator<std::string>(rest), {}};  // from the third on
  const auto has = [&](std::size_t number, std::uint64_t bit) {
    if (fields.size() <= number - 3) return false;
    return (std::strtoull(fields[number - 3].c_str(), nullptr, 10) & bit) != 0;
  };
  return has(9, kPfExiting) || has(31, 1u << (SIGKILL - 1));
}

struct ProcessWatch::State {
  pid_t pid;
  UniqueFd process, end;
  std::vector<UniqueFd> threads;
  Events events;
  std::thread thread;

  void run() {
    if (wait_dying() == Wait::watch_ended) return;
    events.dying();
    if (wait_for(process.get(), -1) == Wait::done) events.ended();
  }

  enum class Wait { done, timeout, watch_ended };

  // Until one of the threads has ended and the process with it, or the process has.
  Wait wait_dying() {
    while (!threads.empty()) {
      std::vector<int> fds = {process.get()};
      for (const UniqueFd& each : threads) fds.push_back(each.get());
      const auto [result, ready] = wait_for_any(fds, -1);
      if (result == Wait::watch_ended || ready == 0) return result;
      const Wait others = wait_for_others();
      if (others != Wait::timeout) return others;
      threads.erase(threads.begin() + static_cast<std::ptrdiff_t>(ready) - 1);  // it alone; QEMU goes on
    }
    return wait_for(process.get(), -1);
  }

  Wait wait_for_others() const {
    for (int waited_ms = 0; waited_ms < kEndOfOthersMs; ++waited_ms) {
      if (is_exiting(pid)) return Wait::done;
      if (const Wait result = wait_for(process.get(), 1); result != Wait::timeout) return result;
    }
    return Wait::timeout;
  }

  Wait wait_for(int pidfd, int timeout_ms) const { return wait_for_any({pidfd}, timeout_ms).first; }

  // A pidfd is readable once its process, or with PIDFD_THREAD its thread, has ended, also while nobody has
  // waited for it yet: pidfd_open(2). With `done` comes which of them.
  std::pair<Wait, std::size_t> wait_for_any(const std::vector<int>& pidfds, int timeout_ms) const {
    std::vector<pollfd> waits = {{.fd = end.get(), .events = POLLIN, .revents = 0}};
    for (const int fd : pidfds) waits.push_back({.fd = fd, .events = POLLIN, .revents = 0});
    while (::poll(waits.data(), waits.size(), timeout_ms) < 0) COLO_ASSERT(errno == EINTR);
    if (waits[0].revents != 0) return {Wait::watch_ended, 0};
    for (std::size_t i = 0; i < pidfds.size(); ++i) {
      if (waits[i + 1].revents != 0) return {Wait::done, i};
    }
    return {Wait::timeout, 0};
  }
};

ProcessWatch::ProcessWatch(pid_t pid, Events events) : state_(std::make_unique<State>()) {
  state_->pid = pid;
  state_->process.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!state_->process) throw_errno("ERR_COLO_PROCESS", "can't watch process " + std::to_string(pid));
  state_->threads = open_threads(pid);
  state_->end.reset(::eventfd(0, EFD_CLOEXEC));
  if (!state_->end) throw_errno("ERR_COLO_PROCESS", "eventfd");
  state_->events = std::move(events);
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

ProcessWatch::~ProcessWatch() {
  const std::uint64_t one = 1;
  COLO_ASSERT(::write(state_->end.get(), &one, sizeof one) == sizeof one);
  state_->thread.join();
}

void ProcessWatch::signal(int number) {
  if (::syscall(SYS_pidfd_send_signal, state_->process.get(), number, nullptr, 0) < 0) {
    throw_errno("ERR_COLO_PROCESS", "can't send signal " + std::to_string(number));
  }
}

}  // namespace colo
