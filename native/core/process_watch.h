// The death of another process, noticed at once.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>

namespace colo {

// pidfd_open(2) and a thread that polls it. `exited` is called once, from that thread. Throws
// ERR_COLO_PROCESS (ESRCH: already gone).
class ProcessWatch {
 public:
  ProcessWatch(pid_t pid, std::function<void()> exited);
  ~ProcessWatch();  // no call to `exited` begins after this

  // Sends a signal through the pidfd: never to another process that got the same number.
  void signal(int number);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace colo
