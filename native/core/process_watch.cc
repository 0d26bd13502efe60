#include "process_watch.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <thread>
#include <utility>

#include "error.h"
#include "unique_fd.h"

namespace colo {

struct ProcessWatch::State {
  UniqueFd process, end;
  std::function<void()> exited;
  std::thread thread;

  // A pidfd is readable once the process has ended, also while nobody has waited for it yet: pidfd_open(2).
  void run() {
    pollfd wait[] = {{.fd = end.get(), .events = POLLIN, .revents = 0},
                     {.fd = process.get(), .events = POLLIN, .revents = 0}};
    while (::poll(wait, 2, -1) < 0) COLO_ASSERT(errno == EINTR);
    if (wait[0].revents == 0) exited();
  }
};

ProcessWatch::ProcessWatch(pid_t pid, std::function<void()> exited) : state_(std::make_unique<State>()) {
  state_->process.reset(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!state_->process) throw_errno("ERR_COLO_PROCESS", "can't watch process " + std::to_string(pid));
  state_->end.reset(::eventfd(0, EFD_CLOEXEC));
  if (!state_->end) throw_errno("ERR_COLO_PROCESS", "eventfd");
  state_->exited = std::move(exited);
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
