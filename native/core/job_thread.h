// A thread for the long calls of an object, one job at a time.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

#include "error.h"

namespace colo {

// Its jobs use what its owner holds, so it is to be the owner's last member, or closed before the rest goes.
class JobThread {
 public:
  using Done = std::function<void(const Error*)>;

  explicit JobThread(std::string owner);  // as errors name it: "the engine"
  ~JobThread() { join(); }

  // Asserts that no job is under way. `done` is called from the thread with what `work` threw: an Error as it
  // is, ERR_COLO_CLOSED if it ended because of close(), else ERR_COLO_RESOURCES. The next job may be started
  // from there. Throws ERR_COLO_CLOSED after close().
  void start(std::function<void()> work, Done done);
  void require_idle() const;  // asserts

  // For a job that waits: throws ERR_COLO_CLOSED as soon as it is to end.
  void wait_until(std::chrono::steady_clock::time_point at);

  void close();  // returns at once; whoever holds a job up must be cut after it
  void join();   // closes, and waits for the job under way

 private:
  void run();
  Error describe(const std::exception& failure) const;

  const std::string owner_;
  mutable std::mutex mutex_;  // guards the following
  std::condition_variable changed_;
  std::function<void()> job_;  // not yet taken up
  bool busy_ = false;
  bool closing_ = false;
  std::once_flag joined_;
  std::thread thread_;
};

}  // namespace colo
