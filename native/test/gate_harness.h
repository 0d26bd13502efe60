// The guest's side of an output gate, for tests: what QEMU's filter-redirector writes and reads.
#pragma once

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>

#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "../core/output_gate.h"
#include "../core/unique_fd.h"

namespace colo::testing {

inline constexpr int kPatienceMs = 10000;

inline std::string frame(const std::string& payload, std::uint32_t vnet_header_bytes = 0) {
  std::string out;
  for (std::uint32_t word : {static_cast<std::uint32_t>(payload.size()), vnet_header_bytes}) {
    for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(word >> shift);
  }
  return out + payload;
}

// The two sockets of a NIC as QEMU holds them; the gate's ends are handed over by attach().
struct Nic {
  UniqueFd held, release, gate_held, gate_release;

  explicit Nic(int release_buffer_bytes = 0) {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) std::abort();
    held.reset(pair[0]);
    gate_held.reset(pair[1]);
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0) std::abort();
    release.reset(pair[0]);
    gate_release.reset(pair[1]);
    const timeval patience{.tv_sec = kPatienceMs / 1000, .tv_usec = 0};
    ::setsockopt(held.get(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (release_buffer_bytes > 0) {
      ::setsockopt(gate_release.get(), SOL_SOCKET, SO_SNDBUF, &release_buffer_bytes,
                   sizeof release_buffer_bytes);
    }
  }

  unsigned attach(OutputGate& gate) { return gate.add_port(gate_held.release(), gate_release.release()); }

  // As QEMU writes: it blocks until everything is in the socket. A gate that never reads again fails the
  // test, by SO_SNDTIMEO.
  void send(const std::string& bytes) {
    for (std::size_t sent = 0; sent < bytes.size();) {
      const ssize_t step = ::send(held.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
      ASSERT_GT(step, 0) << std::strerror(errno);
      sent += static_cast<std::size_t>(step);
    }
  }

  // How much of `bytes` the socket takes without blocking.
  std::size_t send_now(const std::string& bytes) {
    const ssize_t sent = ::send(held.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    return sent < 0 ? 0 : static_cast<std::size_t>(sent);
  }

  // Waits for exactly `count` bytes to come out.
  std::string receive(std::size_t count) {
    std::string out(count, 0);
    for (std::size_t got = 0; got < count;) {
      pollfd wait{.fd = release.get(), .events = POLLIN, .revents = 0};
      if (::poll(&wait, 1, kPatienceMs) != 1) {
        ADD_FAILURE() << "only " << got << " of " << count << " bytes came out";
        return out.substr(0, got);
      }
      const ssize_t step = ::recv(release.get(), out.data() + got, count - got, 0);
      if (step <= 0) {
        ADD_FAILURE() << "the gate closed after " << got << " of " << count << " bytes";
        return out.substr(0, got);
      }
      got += static_cast<std::size_t>(step);
    }
    return out;
  }

  bool silent() const {
    char byte;
    return ::recv(release.get(), &byte, 1, MSG_DONTWAIT | MSG_PEEK) < 0 && errno == EAGAIN;
  }
};

// Counts a gate's events, and waits for them.
class GateEvents {
 public:
  OutputGate::Events callbacks() {
    return {[this] { count(held_); }, [this] { count(pressure_); },
            [this](const char* reason) {
              const std::lock_guard lock(mutex_);
              broken_.push_back(reason);
              changed_.notify_all();
            }};
  }
  int held() { return get(held_); }
  int pressure() { return get(pressure_); }
  std::vector<std::string> broken() {
    const std::lock_guard lock(mutex_);
    return broken_;
  }
  // True once `condition` holds, asked after every event.
  template <typename Condition>
  bool wait(const Condition& condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::milliseconds(kPatienceMs), [&] { return condition(*this); });
  }
  bool wait_held(int n) {
    return wait([n](GateEvents& events) { return events.held_ >= n; });
  }
  bool wait_pressure(int n) {
    return wait([n](GateEvents& events) { return events.pressure_ >= n; });
  }
  bool wait_broken(std::size_t n) {
    return wait([n](GateEvents& events) { return events.broken_.size() >= n; });
  }

 private:
  void count(int& counter) {
    const std::lock_guard lock(mutex_);
    ++counter;
    changed_.notify_all();
  }
  int get(const int& counter) {
    const std::lock_guard lock(mutex_);
    return counter;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  int held_ = 0, pressure_ = 0;
  std::vector<std::string> broken_;
};

// Waits until the gate's figures satisfy `condition`.
template <typename Condition>
bool wait_stats(const OutputGate& gate, const Condition& condition) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(kPatienceMs);
  while (!condition(gate.stats())) {
    if (std::chrono::steady_clock::now() > end) return false;
    ::poll(nullptr, 0, 1);
  }
  return true;
}

}  // namespace colo::testing
