#include "output_gate.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "error.h"
#include "frame_buffer.h"
#include "gate_port.h"
#include "unique_fd.h"

namespace colo {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kSpareChunks = 64;             // 4 MiB
constexpr std::size_t kTurnBytes = 4 * kChunkBytes;  // moved in one go; then others get the lock
constexpr std::uint64_t kWakeToken = ~std::uint64_t{0};
constexpr std::uint32_t kIn = EPOLLIN, kOut = EPOLLOUT, kHangUp = EPOLLRDHUP;
constexpr auto kFlushPoll = std::chrono::milliseconds(1);

void set_nonblocking(int fd) {
  const int flags = ::fcntl(fd, F_GETFL);
  if (flags < 0 || ::fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
    throw_errno("ERR_COLO_SOCKET", "can't make a gate's socket non-blocking");
  }
}

// A descriptor's place in the epoll set. Taken out of the set when nothing is wanted: a hang-up, which epoll
// reports unasked, would otherwise wake the thread again and again while the gate leaves the rest of the data
// where it is.
class Interest {
 public:
  void set(int epoll, int fd, std::uint64_t token, std::uint32_t wanted) {
    if (wanted == events_) return;
    const int operation = events_ == 0 ? EPOLL_CTL_ADD : wanted == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
    epoll_event event{.events = wanted, .data = {.u64 = token}};
    if (::epoll_ctl(epoll, operation, fd, &event) < 0) throw_errno("ERR_COLO_SOCKET", "epoll_ctl");
    events_ = wanted;
  }

 private:
  std::uint32_t events_ = 0;
};

struct PortInEpoll {
  GatePort port;
  Interest held, release;
};

}  // namespace

struct OutputGate::State {
  State(const GateOptions& options_in, Events events_in)
      : options(options_in), events(std::move(events_in)), pool(kSpareChunks) {}

  const GateOptions options;
  const Events events;
  UniqueFd epoll, wake_fd;
  std::thread thread;
  std::mutex close_mutex;  // taken before `mutex`

  mutable std::mutex mutex;  // guards everything below
  std::condition_variable closed_changed;
  ChunkPool pool;
  std::deque<PortInEpoll> ports;
  bool holding = false, closed = false;
  std::uint64_t sealed_epoch = 0;
  std::uint64_t released_epoch = 0;                       // since holding began
  std::optional<Clock::time_point> full_since;            // limit_bytes reached and no byte written since
  bool held_reported = false, pressure_reported = false;  // since the last seal
  bool held_pending = false, pressure_pending = false;    // for the gate's thread to report
  std::vector<const char*> broken_pending;

  void run();
  void handle(const epoll_event& event);
  void deliver_events(std::unique_lock<std::mutex>& lock);
  int wait_ms() const;
  void wake() const;

  std::uint64_t room_bytes() const;
  void read_some(GatePort& port, std::uint64_t bytes_max);
  void write_some(GatePort& port);
  void note_broken(GatePort& port);
  void drop_when_stalled();
  void update_interest();
  void require_open() const;
  void require_drained() const;
};

// --- moving bytes; the lock is held
// -----------------------------------------------------------------------------------------------

std::uint64_t OutputGate::State::room_bytes() const {
  std::uint64_t buffered = 0;
  for (const auto& [port, held, release] : ports) buffered += port.buffered_bytes();
  COLO_ASSERT(buffered <= options.limit_bytes);
  return options.limit_bytes - buffered;
}

// Reads until the socket is empty, the limit is reached or `bytes_max` have come.
void OutputGate::State::read_some(GatePort& port, std::uint64_t bytes_max) {
  const std::uint64_t frames_before = port.buffered_frames();
  for (std::uint64_t moved = 0; port.readable() && moved < bytes_max;) {
    const std::uint64_t room = room_bytes();
    // A port that dropped waits for some room before it goes on, or it would drop every other frame.
    if (port.dropping() && room >= options.limit_bytes / 8) port.keep_again();
    if (!port.dropping() && room == 0) break;
    const std::size_t step = port.read(port.dropping() ? bytes_max : room);
    if (step == 0) break;
    moved += step;
  }
  note_broken(port);
  if (!holding) port.release_all();
  if (!holding) return;
  if (port.buffered_frames() > frames_before && !held_reported) held_reported = held_pending = true;
  if (options.limit_bytes - room_bytes() >= options.pressure_bytes && !pressure_reported) {
    pressure_reported = pressure_pending = true;
  }
}

// Never blocks: QEMU reads in the same thread that may at this moment wait for us to read.
void OutputGate::State::write_some(GatePort& port) {
  for (std::uint64_t moved = 0; port.wants_out() && moved < kTurnBytes;) {
    const std::size_t step = port.write();
    if (step == 0) break;
    moved += step;
    full_since.reset();
  }
  note_broken(port);
}

void OutputGate::State::note_broken(GatePort& port) {
  if (const char* reason = port.take_broken_reason()) broken_pending.push_back(reason);
}

void OutputGate::State::drop_when_stalled() {
  if (!full_since || Clock::now() - *full_since < std::chrono::milliseconds(options.stall_ms)) return;
  full_since.reset();
  for (auto& [port, held, release] : ports) {
    if (port.readable()) port.drop();
  }
}

// --- the gate's thread
// ------------------------------------------------------------------------------------------------------------

void OutputGate::State::update_interest() {
  const bool full = room_bytes() == 0;
  if (full && !full_since) {
    full_since = Clock::now();
    wake();  // another thread may have filled the gate; the gate's own has the stall to time
  }
  std::uint64_t token = 0;
  for (auto& [port, held, release] : ports) {
    const bool wants_in = port.readable() && (port.dropping() || !full);
    held.set(epoll.get(), port.held_fd(), token++, wants_in ? kIn : 0);
    // Also with nothing to write the descriptor stays in the set, for the hang-up that tells us that QEMU is
    // gone.
    release.set(epoll.get(), port.release_fd(), token++,
                !port.writable()   ? 0
                : port.wants_out() ? kOut
                                   : kHangUp);
  }
}

void OutputGate::State::handle(const epoll_event& event) {
  if (event.data.u64 == kWakeToken) {
    std::uint64_t count;
    COLO_ASSERT(::read(wake_fd.get(), &count, sizeof count) == sizeof count);
    return;
  }
  GatePort& port = ports[event.data.u64 / 2].port;
  const bool release_side = event.data.u64 % 2 == 1;
  if (release_side && (event.events & (EPOLLHUP | EPOLLRDHUP | EPOLLERR)) != 0) port.hang_up();
  if (!release_side) read_some(port, kTurnBytes);
  write_some(port);
}

// Callbacks run without the lock, so that they may take as long as they like without holding a seal() up.
void OutputGate::State::deliver_events(std::unique_lock<std::mutex>& lock) {
  const bool held = std::exchange(held_pending, false);
  const bool pressure = std::exchange(pressure_pending, false);
  const std::vector<const char*> broken = std::exchange(broken_pending, {});
  if (!held && !pressure && broken.empty()) return;
  lock.unlock();
  if (held) events.output_held();
  if (pressure) events.pressure();
  for (const char* reason : broken) events.broken(reason);
  lock.lock();
}

int OutputGate::State::wait_ms() const {
  if (!full_since) return -1;
  const auto end = *full_since + std::chrono::milliseconds(options.stall_ms);
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(end - Clock::now()).count();
  return left < 0 ? 0 : static_cast<int>(left);
}

void OutputGate::State::run() {
  std::unique_lock lock(mutex);
  while (!closed) {
    const int timeout_ms = wait_ms();
    lock.unlock();
    std::array<epoll_event, 16> happened;
    const int count = ::epoll_wait(epoll.get(), happened.data(), happened.size(), timeout_ms);
    COLO_ASSERT(count >= 0 || errno == EINTR);
    lock.lock();
    if (closed) return;
    for (int i = 0; i < count; ++i) handle(happened[i]);
    drop_when_stalled();
    update_interest();
    deliver_events(lock);
  }
}

// Makes the gate's thread look again: at `closed`, at full_since, at events that another thread found.
void OutputGate::State::wake() const {
  const std::uint64_t one = 1;
  COLO_ASSERT(::write(wake_fd.get(), &one, sizeof one) == sizeof one);
}

void OutputGate::State::require_open() const {
  if (closed) throw Error("ERR_COLO_CLOSED", 0, "the output gate is closed");
}

void OutputGate::State::require_drained() const {
  if (room_bytes() > 0) return;
  for (const auto& [port, held, release] : ports) {
    if (!port.readable() || port.dropping() || !port.unread()) continue;
    throw Error("ERR_COLO_GATE_FULL", 0,
                "the output gate is full: it holds " + std::to_string(options.limit_bytes) +
                    " bytes and the guest has sent more");
  }
}

// --- the public functions
// ---------------------------------------------------------------------------------------------------------

OutputGate::OutputGate(const GateOptions& options, Events events)
    : state_(std::make_unique<State>(options, std::move(events))) {
  static_assert(kGateLimitBytesMin >= kGuestFrameHeaderBytes + kFrameBytesMax);
  COLO_ASSERT(options.limit_bytes >= kGateLimitBytesMin);
  state_->epoll.reset(::epoll_create1(EPOLL_CLOEXEC));
  if (!state_->epoll) throw_errno("ERR_COLO_SOCKET", "epoll_create1");
  state_->wake_fd.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!state_->wake_fd) throw_errno("ERR_COLO_SOCKET", "eventfd");
  Interest wake_interest;
  wake_interest.set(state_->epoll.get(), state_->wake_fd.get(), kWakeToken, kIn);
  state_->thread = std::thread([state = state_.get()] { state->run(); });
}

OutputGate::~OutputGate() { close(); }

unsigned OutputGate::add_port(int held_fd, int release_fd) {
  UniqueFd held(held_fd), release(release_fd);
  set_nonblocking(held_fd);
  set_nonblocking(release_fd);
  const std::lock_guard lock(state_->mutex);
  state_->require_open();
  state_->ports.push_back({GatePort(std::move(held), std::move(release), state_->pool), {}, {}});
  state_->update_interest();
  return static_cast<unsigned>(state_->ports.size() - 1);
}

void OutputGate::seal(std::uint64_t epoch) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  state.require_open();
  const bool again = epoch == state.sealed_epoch && epoch > state.released_epoch;
  COLO_ASSERT(!state.holding || epoch == state.sealed_epoch + 1 || again);
  for (auto& [port, held, release] : state.ports) state.read_some(port, SIZE_MAX);
  state.update_interest();
  state.wake();  // to report what was found here
  state.require_drained();

  // In pass-through read_some() has let everything go already.
  if (state.holding) {
    for (auto& [port, held, release] : state.ports) port.seal(epoch);
  } else {
    state.released_epoch = 0;
  }
  state.holding = true;
  state.sealed_epoch = epoch;
  state.held_reported = state.pressure_reported = false;
  state.held_pending = state.pressure_pending = false;
}

void OutputGate::release(std::uint64_t epoch) {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (state.closed || !state.holding) return;
  COLO_ASSERT(epoch <= state.sealed_epoch);  // INVARIANT 1
  state.released_epoch = std::max(state.released_epoch, epoch);
  for (auto& [port, held, release] : state.ports) port.release(epoch);
  state.update_interest();
}

void OutputGate::open() {
  State& state = *state_;
  const std::lock_guard lock(state.mutex);
  if (state.closed) return;
  state.holding = false;
  state.held_pending = state.pressure_pending = false;
  for (auto& [port, held, release] : state.ports) port.release_all();
  state.update_interest();
}

bool OutputGate::flush(unsigned timeout_ms) {
  State& state = *state_;
  const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
  std::unique_lock lock(state.mutex);
  COLO_ASSERT(state.closed || !state.holding);
  while (!state.closed && !state.holding) {
    bool done = true;
    for (auto& [port, held, release] : state.ports) {
      state.read_some(port, SIZE_MAX);
      state.write_some(port);
      if (!port.readable() || !port.writable()) {
        state.wake();  // to report what was found here
        return false;
      }
      done = done && port.passed_through();
    }
    state.update_interest();
    if (done) return true;
    if (Clock::now() >= deadline) return false;
    state.closed_changed.wait_for(lock, kFlushPoll);
  }
  return false;
}

GateStats OutputGate::stats() const {
  const std::lock_guard lock(state_->mutex);
  GateStats stats;
  for (const auto& [port, held, release] : state_->ports) {
    stats.held_frames += port.buffered_frames();
    stats.held_bytes += port.buffered_bytes();
    stats.released_frames += port.released_frames();
    stats.released_bytes += port.released_bytes();
    stats.dropped_frames += port.dropped_frames();
  }
  stats.holding = state_->holding;
  return stats;
}

void OutputGate::close() {
  State& state = *state_;
  const std::lock_guard one_closer(state.close_mutex);
  {
    const std::lock_guard lock(state.mutex);
    state.closed = true;
    for (auto& [port, held, release] : state.ports) port.close();
  }
  state.closed_changed.notify_all();
  state.wake();
  if (state.thread.joinable()) state.thread.join();
}

}  // namespace colo
