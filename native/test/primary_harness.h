// The primary's engine and what it connects to, for tests of the whole path.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <functional>
#include <string>
#include <thread>
#include <utility>

#include "../core/checkpoint_stream.h"
#include "../core/primary_engine.h"
#include "engine_harness.h"

namespace colo::testing {

inline constexpr std::uint64_t kGeneration = 3;
using Tracker = PrimaryOptions::Tracker;

// Listens like the acceptor, and hands each bulk connection to `accepted`, on a thread of its own.
class Listener {
 public:
  explicit Listener(std::function<void(UniqueFd, std::string preface)> accepted = {}, int backlog = 16)
      : fd_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof address;
    if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), length) != 0 ||
        ::listen(fd_.get(), backlog) != 0)
      std::abort();
    if (::getsockname(fd_.get(), reinterpret_cast<sockaddr*>(&address), &length) != 0) std::abort();
    port = ntohs(address.sin_port);
    if (accepted) thread_ = std::thread([this, accepted] { serve(accepted); });
  }
  ~Listener() {
    ::shutdown(fd_.get(), SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
  }

  std::uint16_t port = 0;

 private:
  void serve(const std::function<void(UniqueFd, std::string)>& accepted) {
    for (;;) {
      UniqueFd fd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!fd) return;
      std::string preface(kBulkPrefaceBytes, '\0');
      try {
        receive_all(system_socket_calls(), fd.get(), std::as_writable_bytes(std::span(preface)));
      } catch (const Error&) {
        continue;  // a connection that was cut before it said anything
      }
      accepted(std::move(fd), std::move(preface));
    }
  }

  UniqueFd fd_;
  std::thread thread_;
};

inline PrimaryOptions options_for(const ModelledGuest& guest, Tracker tracker = Tracker::compare,
                                  bool shadow = true) {
  PrimaryOptions options;
  options.pid = guest.pid();
  options.blocks = guest.blocks();
  options.threads = 2;
  options.shadow = shadow;
  options.tracker = tracker;
  options.staging_resident_bytes = 1u << 20;
  return options;
}

inline std::string protect(PrimaryEngine& engine) {
  Outcome<> outcome;
  engine.protect(outcome.plain_done());
  return outcome.wait();
}
inline std::string connect(PrimaryEngine& engine, std::uint16_t port, unsigned connections) {
  Outcome<> outcome;
  engine.connect("127.0.0.1", port, kTestToken, kGeneration, connections, nullptr, outcome.plain_done());
  return outcome.wait();
}
inline std::string sync(PrimaryEngine& engine) {
  Outcome<> outcome;
  engine.sync(
      0, [](SyncProgress) {}, outcome.plain_done());
  return outcome.wait();
}
inline std::string capture(PrimaryEngine& engine, std::uint64_t epoch, CaptureResult* result = nullptr) {
  Outcome<CaptureResult> outcome;
  engine.capture(epoch, nullptr, outcome.done());
  const std::string code = outcome.wait();
  if (result != nullptr) *result = outcome.result();
  return code;
}
inline std::string transmit(PrimaryEngine& engine, std::uint64_t epoch, const std::string& vmstate,
                            TransmitResult* result = nullptr) {
  const UniqueFd file(::memfd_create("vmstate", MFD_CLOEXEC));
  EXPECT_EQ(::pwrite(file.get(), vmstate.data(), vmstate.size(), 0), static_cast<ssize_t>(vmstate.size()));
  Outcome<TransmitResult> outcome;
  engine.transmit(epoch, file.get(), outcome.done());
  const std::string code = outcome.wait();
  if (result != nullptr) *result = outcome.result();
  return code;
}

}  // namespace colo::testing
