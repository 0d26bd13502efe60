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
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "error.h"
#include "heartbeat_frame.h"
#include "link_sockets.h"
#include "locked_memory.h"
#include "socket_io.h"
#include "unique_fd.h"

namespace colo {
namespace {

using Clock = HeartbeatJudge::Clock;
using Kind = HeartbeatVerdict::Kind;

constexpr int kConnectTimeoutMs = 5000;
// A peer that sends more than this would keep a thread busy that runs before all others.
constexpr auto kPeerIntervalMin = std::chrono::milliseconds(5);
constexpr std::uint64_t kPeerBurstMax = 1000;

std::uint64_t microseconds(Clock::duration time) {
  return static_cast<std::uint64_t>(
      std::max<std::int64_t>(0, std::chrono::duration_cast<std::chrono::microseconds>(time).count()));
}

std::uint64_t now_us(Clock::time_point now) { return microseconds(now.time_since_epoch()); }

// Heartbeats are little work, and must go out on a host whose processors are all busy. Without the privilege
// they take their turn like everybody else. Returns the errno.
int become_real_time() {
  sched_param parameters{};
  parameters.sched_priority = 1;
  return ::sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &parameters) == 0 ? 0 : errno;
}

bool is_link_error(const Error& error) { return std::strcmp(error.code(), "ERR_COLO_LINK") == 0; }

// After a call that couldn't go on; a plain one waits for what its name says.
short waits_for(const Connection& connection, short plain) {
  return connection.tls ? connection.tls->waits_for() : plain;
}

}  // namespace

// In pages of its own: they are locked.
struct alignas(kMemoryPageBytes) Heartbeat::State {
  State(const HeartbeatLimits& heartbeat_limits, std::uint64_t session, OnVerdict verdict,
        OnPrivileges privileges)
      : limits(heartbeat_limits),
        generation(session),
        on_verdict(std::move(verdict)),
        on_privileges(std::move(privileges)) {
    end.reset(::eventfd(0, EFD_CLOEXEC));
    if (!end) throw_errno("ERR_COLO_RESOURCES", "eventfd");
  }

  const HeartbeatLimits limits;
  const std::uint64_t generation;
  const OnVerdict on_verdict;
  const OnPrivileges on_privileges;
  Target target;
  LinkSockets sockets;  // holds the connection of the primary's end
  Connection accepted;  // that of the secondary's
  UniqueFd end;
  std::atomic<std::uint64_t> own_progress = 0;
  std::thread thread;

  // Written by the thread, read by all.
  std::atomic<std::uint64_t> sent = 0, received = 0;
  HeartbeatSamples rtt_us, gap_us;
  std::atomic<bool> real_time = false;

  // The thread's own.
  Connection* connection = nullptr;  // null once it has ended
  short reading_waits_for = POLLIN;
  short writing_waits_for = 0;  // 0: nothing is to be written
  std::array<std::byte, kHeartbeatBytes> incoming;
  std::size_t incoming_bytes = 0;
  std::array<std::byte, kHeartbeatBytes> beat;
  std::span<const std::byte> outgoing;  // of `beat`, not yet taken by the kernel
  HeartbeatFrame last;                  // the newest of the peer's; its sequence is 0 before the first
  Clock::time_point last_came, began;

  void run();
  void beat_and_judge();
  void connect();
  std::optional<HeartbeatVerdict> live();
  template <typename Step>
  void while_open(HeartbeatJudge& judge, Clock::time_point now, const Step& step);
  void receive(HeartbeatJudge& judge, Clock::time_point now);
  void take(HeartbeatJudge& judge, Clock::time_point now);
  void queue_beat(Clock::time_point now);
  void flush();
  bool wait_until(Clock::time_point at) const;
  bool ended() const { return !wait_until(Clock::time_point::min()); }
};

void Heartbeat::State::run() {
  const LockedMemory state(this, sizeof *this);
  const LockedMemory stack = LockedMemory::stack();
  const int real_time_errno = become_real_time();
  real_time = real_time_errno == 0;
  if (on_privileges)
    on_privileges({real_time_errno, state.sys_errno() != 0 ? state.sys_errno() : stack.sys_errno()});
  beat_and_judge();
}

void Heartbeat::State::beat_and_judge() {
  try {
    if (connection == nullptr) connect();
    if (const auto verdict = live(); verdict && !ended()) on_verdict(*verdict);
  } catch (const Error& error) {
    const Kind kind = std::strcmp(error.code(), "ERR_COLO_PEER") == 0 ? Kind::malformed : Kind::closed;
    if (!ended()) on_verdict({kind, std::string("breaks its heartbeats: ") + error.what(), Clock::now()});
  }
}

// Throws ERR_COLO_LINK.
void Heartbeat::State::connect() {
  connection = &sockets.connect(target.host, target.port, kConnectTimeoutMs, target.credentials.get());
  auto preface = encode_heartbeat_preface(target.token, generation);
  iovec piece = {preface.data(), preface.size()};
  send_all(connection->calls(), connection->fd.get(), {&piece, 1}, "the heartbeat connection");
}

// Until there is a verdict, or none because the object ends. Throws ERR_COLO_PEER.
std::optional<HeartbeatVerdict> Heartbeat::State::live() {
  Clock::time_point now = Clock::now();
  began = now;
  HeartbeatJudge judge(limits, now);
  Clock::time_point beat_due = now;
  for (;;) {
    judge.observe(now);
    while_open(judge, now, [&] { receive(judge, now); });
    if (auto verdict = judge.verdict(now)) return verdict;
    const bool is_due = now >= beat_due;
    // Without a connection, too: the judge tells our own stand-stills by it.
    if (is_due) beat_due = now + limits.interval;
    while_open(judge, now, [&] {
      if (is_due) queue_beat(now);
      flush();
    });
    if (!wait_until(std::min(beat_due, judge.due()))) return {};
    now = Clock::now();
  }
}

// What TLS finds wrong ends the connection like everything else that somebody in between can do to it.
template <typename Step>
void Heartbeat::State::while_open(HeartbeatJudge& judge, Clock::time_point now, const Step& step) {
  if (connection == nullptr) return;
  try {
    step();
  } catch (const Error& error) {
    if (!is_link_error(error)) throw;
    connection = nullptr;
    judge.closed(now, error.what());
  }
}

// All that has come: what TLS has read from the socket and not yet given us would wake nobody. Throws
// ERR_COLO_LINK when the connection has ended, ERR_COLO_PEER.
void Heartbeat::State::receive(HeartbeatJudge& judge, Clock::time_point now) {
  for (;;) {
    const ssize_t got = connection->calls().recv(connection->fd.get(), incoming.data() + incoming_bytes,
                                                 incoming.size() - incoming_bytes, MSG_DONTWAIT);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) break;
    if (got == 0) throw Error("ERR_COLO_LINK", 0, "the connection was closed");
    if (got < 0) throw Error("ERR_COLO_LINK", errno, std::strerror(errno));
    incoming_bytes += static_cast<std::size_t>(got);
    if (incoming_bytes == incoming.size()) take(judge, now);
  }
  reading_waits_for = waits_for(*connection, POLLIN);
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
  ++received;
  if (last.sequence != 0) gap_us.add(microseconds(now - last_came));
  if (frame.echo_us != 0) rtt_us.add(travelled_us - std::min<std::uint64_t>(travelled_us, frame.echo_age_us));
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
  frame.sequence = ++sent;
  beat = encode_heartbeat(frame);
  outgoing = beat;
}

// As far as the kernel takes it. Throws ERR_COLO_LINK when the connection has ended.
void Heartbeat::State::flush() {
  writing_waits_for = 0;
  while (!outgoing.empty()) {
    iovec piece = {const_cast<std::byte*>(outgoing.data()), outgoing.size()};
    msghdr message = {};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    const ssize_t took =
        connection->calls().sendmsg(connection->fd.get(), &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (took < 0 && errno == EINTR) continue;
    if (took < 0 && errno == EAGAIN) {
      writing_waits_for = waits_for(*connection, POLLOUT);
      return;
    }
    if (took < 0) throw Error("ERR_COLO_LINK", errno, std::strerror(errno));
    outgoing = outgoing.subspan(static_cast<std::size_t>(took));
  }
}

// Until then, or until something can be read or written. False when the object ends.
bool Heartbeat::State::wait_until(Clock::time_point at) const {
  const int fd = connection == nullptr ? -1 : connection->fd.get();  // -1 is ignored
  const auto events = static_cast<short>(reading_waits_for | writing_waits_for);
  std::array<pollfd, 2> waits = {pollfd{end.get(), POLLIN, 0}, pollfd{fd, events, 0}};
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
                     OnVerdict on_verdict, OnPrivileges on_privileges)
    : state_(std::make_unique<State>(limits, generation, std::move(on_verdict), std::move(on_privileges))) {
  COLO_ASSERT(target.token.size() == kHeartbeatTokenBytes);
  state_->target = std::move(target);
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

Heartbeat::Heartbeat(const HeartbeatLimits& limits, std::uint64_t generation, Connection accepted,
                     OnVerdict on_verdict, OnPrivileges on_privileges)
    : state_(std::make_unique<State>(limits, generation, std::move(on_verdict), std::move(on_privileges))) {
  COLO_ASSERT(static_cast<bool>(accepted.fd));
  state_->accepted = std::move(accepted);
  state_->connection = &state_->accepted;
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
  return {state_->sent, state_->received, state_->rtt_us.quantiles(), state_->gap_us.quantiles(),
          state_->real_time};
}

}  // namespace colo
