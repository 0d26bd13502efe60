// The death of another process, noticed at once.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>

namespace colo {

// pidfd_open(2) and a thread that polls. Throws ERR_COLO_PROCESS (ESRCH: already gone).
class ProcessWatch {
 public:
  // Each is called once, from the watching thread, in this order.
  struct Events {
    // It is ending and runs no code of its own any more, but it holds its memory and descriptors still: a
    // killed QEMU takes the kernel tens of milliseconds. Linux 6.9 tells of the end of a single thread
    // (PIDFD_THREAD), and most of a killed process's end at once; before that, and for a process of one
    // thread, this comes together with `ended`.
    std::function<void()> dying;
    // It has gone; nobody need have waited for it.
    std::function<void()> ended;
  };

  ProcessWatch(pid_t pid, Events events);
  ~ProcessWatch();  // no call begins after this

  // Sends a signal through the pidfd: never to another process that got the same number.
  void signal(int number);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// By the text of its /proc/PID/stat (proc_pid_stat(5)): whether its main thread has begun to exit, or must:
// it may be in the middle of an operation of its disk, and not know yet that it has been killed. True for an
// empty text, which is that of a process that has gone; false for one that says nothing.
bool is_exiting_by_stat(const std::string& stat);

}  // namespace colo
