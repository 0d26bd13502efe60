// A few threads that share out one job at a time.
#pragma once

#include <functional>
#include <memory>

namespace colo {

// run() calls job(0) .. job(parts - 1), the calling thread taking part, and returns when all are done; the
// first exception is rethrown in the caller after every part has ended. One run() at a time. Threads sleep on
// a condition variable between jobs.
class WorkerPool {
 public:
  explicit WorkerPool(unsigned threads);  // 1 = no extra thread, everything in the caller
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  unsigned threads() const;
  void run(unsigned parts, const std::function<void(unsigned)>& job);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace colo
