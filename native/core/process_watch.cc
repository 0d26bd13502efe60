#include "process_watch.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>
#include <string>
#include <thread>
#include <utility>

#include "error.h"
#include "unique_fd.h"

namespace colo {

namespace {

constexpr unsigned kPidfdThread = O_EXCL;         // PIDFD_THREAD, which older headers lack
constexpr unsigned long kPfExiting = 0x00000004;  // PF_EXITING in the kernel's include/linux/sched.h
constexpr int kEndOfOthersMs = 20;  // a killed thread's neighbours are killed with it, at the same moment

// Another thread than the main one, whose end the kernel tells of last (pidfs, since Linux 6.15). QEMU's
// first one lives as long as QEMU (util/rcu.c). 0 if there is none.
pid_t another_thread(pid_t pid) {
  pid_t found = 0;
  std::error_code gone;
  for (const auto& entry :
       std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/task", gone)) {
    const pid_t thread = std::stoi(entry.path().filename());
    if (thread != pid && (found == 0 || thread < found)) found = thread;
  }
  return found;
}

// Whether its main thread has begun to exit: proc_pid_stat(5), the seventh field behind the name.
bool is_exiting(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return true;  // it has gone
  std::istringstream fields(text.substr(name_end + 1));
  std::string skipped;
  unsigned long flags = 0;
  for (int field = 0; field < 6; ++field) fields >> skipped;
  fields >> flags;
  return (flags & kPfExiting) != 0;
}

}  // namespace

struct ProcessWatch::State {
  pid_t pid;
  UniqueFd process, other_thread, end;
  Events events;
  std::thread thread;

  void run() {
    if (other_thread && (wait_for(other_thread.get(), -1) == Wait::watch_ended || !others_end())) return;
    if (!other_thread && wait_for(process.get(), -1) == Wait::watch_ended) return;
    events.dying();
    if (wait_for(process.get(), -1) == Wait::done) events.ended();
  }

  // One thread has ended: true when the process is ending, which it may do much later. False when the watch
  // is to end.
  bool others_end() const {
    for (int waited_ms = 0; waited_ms < kEndOfOthersMs; ++waited_ms) {
      if (is_exiting(pid)) return true;
      const Wait result = wait_for(process.get(), 1);
      if (result != Wait::timeout) return result == Wait::done;
    }
    return wait_for(process.get(), -1) == Wait::done;
  }

  // A pidfd is readable once its process, or with PIDFD_THREAD its thread, has ended, also while nobody has
  // waited for it yet: pidfd_open(2).
  enum class Wait { done, timeout, watch_ended };
  Wait wait_for(int pidfd, int timeout_ms) const {
    pollfd wait[] = {{.fd = end.get(), .events = POLLIN, .revents = 0},
                     {.fd = pidfd, .events = POLLIN, .revents = 0}};
    int ready = 0;
    while ((ready = ::poll(wait, 2, timeout_ms)) < 0) COLO_ASSERT(errno == EINTR);
    if (ready == 0) return Wait::timeout;
    return wait[0].revents == 0 ? Wait::done : Wait::watch_ended;
  }
};

ProcessWatch::ProcessWatch(pid_t pid, Events events) : state_(std::make_unique<State>()) {
  state_->pid = pid;
  state_->process.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!state_->process) throw_errno("ERR_COLO_PROCESS", "can't watch process " + std::to_string(pid));
  // Without it (an older kernel, or it has just ended) the process itself is all that is watched.
  if (const pid_t other = another_thread(pid); other != 0)
    state_->other_thread.reset(static_cast<int>(::syscall(SYS_pidfd_open, other, kPidfdThread)));
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
