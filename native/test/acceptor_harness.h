// What an acceptor tells, for one who waits for it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../core/acceptor.h"

namespace colo::testing {

class AcceptorLog {
 public:
  struct Accepted {
    Acceptor::Link link;
    Connection connection;
    std::string preface, peer;
    std::size_t refused_before;
  };

  Acceptor::Events events() {
    return {[this](Acceptor::Link link, Connection connection, std::string preface, std::string peer) {
              const std::lock_guard lock(mutex_);
              accepted.push_back(
                  {link, std::move(connection), std::move(preface), std::move(peer), refused.size()});
              changed_.notify_all();
            },
            [this](const std::string&, std::string reason) {
              const std::lock_guard lock(mutex_);
              refused.push_back(std::move(reason));
              changed_.notify_all();
            }};
  }

  // False when it isn't so in time.
  bool wait(std::size_t accepted_count, std::size_t refused_count,
            std::chrono::milliseconds patience = std::chrono::seconds(10)) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(
        lock, patience, [&] { return accepted.size() == accepted_count && refused.size() == refused_count; });
  }

  std::vector<Accepted> accepted;
  std::vector<std::string> refused;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
};

}  // namespace colo::testing
