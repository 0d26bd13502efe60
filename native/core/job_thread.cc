#include "job_thread.h"

#include <exception>
#include <optional>
#include <utility>

namespace colo {

JobThread::JobThread(std::string owner) : owner_(std::move(owner)), thread_([this] { run(); }) {}

void JobThread::run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return job_ || closing_; });
    if (!job_) return;
    const auto taken = std::exchange(job_, nullptr);
    lock.unlock();
    taken();
    lock.lock();
  }
}

void JobThread::start(std::function<void()> work, Done done) {
  {
    const std::lock_guard lock(mutex_);
    if (closing_) throw Error("ERR_COLO_CLOSED", 0, owner_ + " is closed");
    COLO_ASSERT(!busy_);
    busy_ = true;
    job_ = [this, work = std::move(work), done = std::move(done)] {
      std::optional<Error> failure;
      try {
        work();
      } catch (const std::exception& thrown) {
        failure = describe(thrown);
      }
      {
        // Before the report: whoever gets it may start the next job at once.
        const std::lock_guard idle(mutex_);
        busy_ = false;
      }
      done(failure ? &*failure : nullptr);
    };
  }
  changed_.notify_all();
}

void JobThread::require_idle() const {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(!busy_);
}

Error JobThread::describe(const std::exception& failure) const {
  {
    const std::lock_guard lock(mutex_);
    if (closing_) return {"ERR_COLO_CLOSED", 0, owner_ + " was closed"};
  }
  if (const auto* error = dynamic_cast<const Error*>(&failure)) return *error;
  // INVARIANT 7: the agent goes on, to hand the guest over in order, even when it has no memory or no thread
  // left.
  return {"ERR_COLO_RESOURCES", 0, failure.what()};
}

void JobThread::wait_until(std::chrono::steady_clock::time_point at) {
  std::unique_lock lock(mutex_);
  if (changed_.wait_until(lock, at, [this] { return closing_; }))
    throw Error("ERR_COLO_CLOSED", 0, owner_ + " was closed");
}

void JobThread::close() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
}

void JobThread::join() {
  close();
  std::call_once(joined_, [this] { thread_.join(); });
}

}  // namespace colo
