#include "worker_pool.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "error.h"

namespace colo {

struct WorkerPool::State {
  std::mutex mutex;
  std::condition_variable begun, ended;
  // Guarded by `mutex`, as everything below. `next` is the first part that nobody has taken, `unfinished`
  // counts parts taken or to be taken.
  const std::function<void(unsigned)>* job = nullptr;
  unsigned parts = 0, next = 0, unfinished = 0;
  std::exception_ptr failure;
  bool closing = false;
  std::vector<std::thread> threads;

  ~State() {
    {
      const std::lock_guard lock(mutex);
      closing = true;
    }
    begun.notify_all();
    for (std::thread& thread : threads) thread.join();
  }

  void take_parts(std::unique_lock<std::mutex>& lock) {
    while (next < parts) {
      const unsigned part = next++;
      lock.unlock();
      std::exception_ptr thrown;
      try {
        (*job)(part);
      } catch (...) {
        thrown = std::current_exception();  // rethrown by run(), in the caller's thread
      }
      lock.lock();
      if (!failure) failure = thrown;
      if (--unfinished == 0) ended.notify_all();
    }
  }

  void serve() {
    std::unique_lock lock(mutex);
    while (!closing) {
      take_parts(lock);
      if (!closing) begun.wait(lock);
    }
  }
};

WorkerPool::WorkerPool(unsigned threads) : state_(std::make_unique<State>()) {
  COLO_ASSERT(threads >= 1);
  for (unsigned i = 1; i < threads; ++i)
    state_->threads.emplace_back([state = state_.get()] { state->serve(); });
}

WorkerPool::~WorkerPool() = default;

unsigned WorkerPool::threads() const { return static_cast<unsigned>(state_->threads.size()) + 1; }

void WorkerPool::run(unsigned parts, const std::function<void(unsigned)>& job) {
  std::unique_lock lock(state_->mutex);
  COLO_ASSERT(state_->unfinished == 0);
  state_->job = &job;
  state_->next = 0;
  state_->parts = state_->unfinished = parts;
  if (parts > 1) state_->begun.notify_all();
  state_->take_parts(lock);
  state_->ended.wait(lock, [this] { return state_->unfinished == 0; });
  if (state_->failure) std::rethrow_exception(std::exchange(state_->failure, nullptr));
}

}  // namespace colo
