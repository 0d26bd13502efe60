#include "heartbeat.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "error.h"
#include "heartbeat_frame.h"
#include "link_sockets.h"
#include "socket_io.h"

namespace colo {
namespace {

using Clock = HeartbeatJudge::Clock;
using Kind = HeartbeatVerdict::Kind;

constexpr int kConnectTimeoutMs = 5000;
constexpr std::size_t kSamplesMax = 8192;
// A peer that sends more than this would keep a thread busy that runs before all others.
constexpr auto kPeerIntervalMin = std::chrono::milliseconds(5);
constexpr std::uint64_t kPeerBurstMax = 1000;

std::uint64_t microseconds(Clock::duration time) {
  return static_cast<std::uint64_t>(
      std::max<std::int64_t>(0, std::chrono::duration_cast<std::chrono::microseconds>(time).count()));
}

std::uint64_t now_us(Clock::time_point now) { return microseconds(now.time_since_epoch()); }

class Samples {
 public:
  void add(std::uint64_t value) {
    if (ring_.size() < kSamplesMax) {
      ring_.push_back(value);
    } else {
      ring_[count_ % kSamplesMax] = value;
    }
    min_ = count_ == 0 ? value : std::min(min_, value);
    max_ = std::max(max_, value);
    ++count_;
  }

  HeartbeatQuantiles quantiles() const {
    if (ring_.empty()) return {};
    std::vector<std::uint64_t> sorted = ring_;
    std::sort(sorted.begin(), sorted.end());
    const auto at = [&](std::size_t percent) { return sorted[(sorted.size() - 1) * percent / 100]; };
    return {min_, at(50), at(99), max_};
  }

 private:
  std::vector<std::uint64_t> ring_;
  std::uint64_t count_ = 0, min_ = 0, max_ = 0;
};

// Heartbeats are little work, and must go out on a host whose processors are all busy. Without the privilege
// they take their turn like everybody else.
bool become_real_time() {
  sched_param parameters{};
  parameters.sched_priority = 1;
  return ::sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &parameters) == 0;
}

}  // namespace

struct Heartbeat::State {
  State(const HeartbeatLimits& heartbeat_limits, std::uint64_t session, OnVerdict callback)
      : limits(heartbeat_limits), generation(session), on_verdict(std::move(callback)) {
    end.reset(::eventfd(0, EFD_CLOEXEC));
    if (!end) throw_errno("ERR_COLO_RESOURCES", "eventfd");
  }

  const HeartbeatLimits limits;
  const std::uint64_t generation;
  const OnVerdict on_verdict;
  Target target;
  LinkSockets sockets;  // holds the socket of the primary's end
  UniqueFd accepted;    // that of the secondary's
  UniqueFd end;
  std::atomic<std::uint64_t> own_progress = 0;
  std::thread thread;

  mutable std::mutex stats_mutex;  // guards the following
  std::uint64_t sent = 0, received = 0;
  Samples rtt_us, gap_us;
  bool real_time = false;

  // The thread's own.
  int fd = -1;  // -1 once the connection has ended
  std::array<std::byte, kHeartbeatBytes> incoming;
  std::size_t incoming_bytes = 0;
  std::vector<std::byte> outgoing;  // not yet taken by the kernel
  HeartbeatFrame last;              // the newest of the peer's; its sequence is 0 before the first
  Clock::time_point last_came, began;

  void run();
  void connect();
  std::optional<HeartbeatVerdict> live();
  void receive(HeartbeatJudge& judge, Clock::time_point now);
  void take(HeartbeatJudge& judge, Clock::time_point now);
  void queue_beat(Clock::time_point now);
  std::string flush();
  bool wait_until(Clock::time_point at) const;
  bool ended() const { return !wait_until(Clock::time_point::min()); }
};

void Heartbeat::State::run() {
  const bool raised = become_real_time();
  {
    const std::lock_guard lock(stats_mutex);
    real_time = raised;
  }
  try {
    if (!accepted) connect();
    if (const auto verdict = live(); verdict && !ended()) on_verdict(*verdict);
  } catch (const Error& error) {
    const Kind kind = std::strcmp(error.code(), "ERR_COLO_PEER") == 0 ? Kind::malformed : Kind::closed;
    if (!ended()) on_verdict({kind, std::string("breaks its heartbeats: ") + error.what(), Clock::now()});
  }
}

// Throws ERR_COLO_LINK.
void Heartbeat::State::connect() {
  fd = sockets.connect(target.host, target.port, kConnectTimeoutMs);
  auto preface = encode_heartbeat_preface(target.token, generation);
  iovec piece = {preface.data(), preface.size()};
  send_all(system_socket_calls(), fd, {&piece, 1}, "the heartbeat connection");
}

// Until there is a verdict, or none because the object ends. Throws ERR_COLO_PEER.
std::optional<HeartbeatVerdict> Heartbeat::State::live() {
  Clock::time_point now = Clock::now();
  began = now;
  HeartbeatJudge judge(limits, now);
  Clock::time_point beat_due = now;
  for (;;) {
    judge.observe(now);
    if (fd >= 0) receive(judge, now);
    if (auto verdict = judge.verdict(now)) return verdict;
    if (fd >= 0 && now >= beat_due) {
      queue_beat(now);
      beat_due = now + limits.interval;
    }
    if (const std::string failure = flush(); !failure.empty()) {
      fd = -1;
      judge.closed(now, failure);
    }
    // At least once an interval, so that the judge can tell our own stand-stills.
    if (fd < 0 && now >= beat_due) beat_due = now + limits.interval;
    if (!wait_until(std::min(beat_due, judge.due()))) return {};
    now = Clock::now();
  }
}

void Heartbeat::State::receive(HeartbeatJudge& judge, Clock::time_point now) {
  for (;;) {
    const ssize_t got =
        ::recv(fd, incoming.data() + incoming_bytes, incoming.size() - incoming_bytes, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
      judge.closed(now, got == 0 ? "the connection was closed" : std::strerror(errno));
      fd = -1;
      return;
    }
    incoming_bytes += static_cast<std::size_t>(got);
    if (incoming_bytes == incoming.size()) take(judge, now);
  }
}

void Heartbeat::State::take(HeartbeatJudge& judge, Clock::time_point now) {
  incoming_bytes = 0;
  const HeartbeatFrame frame = parse_heartbeat(incoming);
  if (frame.generation != generation)
    throw Error("ERR_COLO_PEER", 0,
                "a heartbeat of generation " + std::to_string(frame.generation) + " came in generation " +
                    std::to_string(generation));
  if (frame.sequence != last.sequence + 1)
    throw Error(
        "ERR_COLO_PEER", 0,
        "heartbeat " + std::to_string(frame.sequence) + " came after " + std::to_string(last.sequence));
  if (frame.sequence > kPeerBurstMax + static_cast<std::uint64_t>((now - began) / kPeerIntervalMin))
    throw Error("ERR_COLO_PEER", 0, "heartbeats come more often than every 5 ms");
  if (frame.interval_ms > limits.timeout / std::chrono::milliseconds(kHeartbeatsInTimeoutMin))
    throw Error("ERR_COLO_PEER", 0,
                "the peer's heartbeats come every " + std::to_string(frame.interval_ms) +
                    " ms, and here it would be taken for dead after " +
                    std::to_string(limits.timeout.count()) +
                    " ms: raise --peer-timeout here or lower --heartbeat there");
  const std::uint64_t travelled_us = now_us(now) - frame.echo_us;
  if (frame.echo_us > now_us(now) || frame.progress < last.progress)
    throw Error("ERR_COLO_PEER", 0, "a heartbeat's numbers go backwards");
  {
    const std::lock_guard lock(stats_mutex);
    ++received;
    if (last.sequence != 0) gap_us.add(microseconds(now - last_came));
    if (frame.echo_us != 0)
      rtt_us.add(travelled_us - std::min<std::uint64_t>(travelled_us, frame.echo_age_us));
  }
  last = frame;
  last_came = now;
  judge.heard(now, frame.progress);
}

void Heartbeat::State::queue_beat(Clock::time_point now) {
  // The kernel still holds the last one: the peer doesn't read, and another would only lie behind it.
  if (!outgoing.empty()) return;
  HeartbeatFrame frame;
  frame.generation = generation;
  frame.interval_ms = static_cast<std::uint32_t>(limits.interval.count());
  frame.progress = own_progress;
  frame.sent_us = now_us(now);
  if (last.sequence != 0) {
    frame.echo_us = last.sent_us;
    frame.echo_age_us =
        static_cast<std::uint32_t>(std::min<std::uint64_t>(microseconds(now - last_came), UINT32_MAX));
  }
  {
    const std::lock_guard lock(stats_mutex);
    frame.sequence = ++sent;
  }
  const auto bytes = encode_heartbeat(frame);
  outgoing.assign(bytes.begin(), bytes.end());
}

// Empty unless the connection has ended.
std::string Heartbeat::State::flush() {
  while (fd >= 0 && !outgoing.empty()) {
    const ssize_t took = ::send(fd, outgoing.data(), outgoing.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (took < 0 && errno == EINTR) continue;
    if (took < 0 && errno == EAGAIN) return {};
    if (took < 0) return std::strerror(errno);
    outgoing.erase(outgoing.begin(), outgoing.begin() + took);
  }
  return {};
}

// Until then, or until something can be read or written. False when the object ends.
bool Heartbeat::State::wait_until(Clock::time_point at) const {
  const auto events = static_cast<short>(POLLIN | (outgoing.empty() ? 0 : POLLOUT));
  std::array<pollfd, 2> waits = {pollfd{end.get(), POLLIN, 0}, pollfd{fd, events, 0}};  // fd -1 is ignored
  const Clock::duration left = std::max(
      Clock::duration::zero(), at == Clock::time_point::min() ? Clock::duration::zero() : at - Clock::now());
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(left);
  const timespec timeout = {static_cast<time_t>(seconds.count()),
                            static_cast<long>(std::chrono::nanoseconds(left - seconds).count())};
  const int ready = ::ppoll(waits.data(), waits.size(), &timeout, nullptr);
  COLO_ASSERT(ready >= 0 || errno == EINTR);
  return ready <= 0 || waits[0].revents == 0;
}

Heartbeat::Heartbeat(const HeartbeatLimits& limits, std::uint64_t generation, Target target,
                     OnVerdict on_verdict)
    : state_(std::make_unique<State>(limits, generation, std::move(on_verdict))) {
  COLO_ASSERT(target.token.size() == kHeartbeatTokenBytes);
  state_->target = std::move(target);
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

Heartbeat::Heartbeat(const HeartbeatLimits& limits, std::uint64_t generation, UniqueFd socket,
                     OnVerdict on_verdict)
    : state_(std::make_unique<State>(limits, generation, std::move(on_verdict))) {
  COLO_ASSERT(static_cast<bool>(socket));
  state_->accepted = std::move(socket);
  state_->fd = state_->accepted.get();
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

Heartbeat::~Heartbeat() {
  const std::uint64_t one = 1;
  COLO_ASSERT(::write(state_->end.get(), &one, sizeof one) == sizeof one);
  state_->sockets.cut();
  state_->thread.join();
}

void Heartbeat::progress() { state_->own_progress.fetch_add(1, std::memory_order_relaxed); }

HeartbeatStats Heartbeat::stats() const {
  const std::lock_guard lock(state_->stats_mutex);
  return {state_->sent, state_->received, state_->rtt_us.quantiles(), state_->gap_us.quantiles(),
          state_->real_time};
}

}  // namespace colo
