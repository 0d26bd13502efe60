#include "standby_engine.h"

#include <condition_variable>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "bulk_receiver.h"
#include "laps.h"
#include "ram_cache.h"
#include "scrub_stream.h"
#include "standby_disks.h"
#include "vmstate_mailbox.h"

namespace colo {
namespace {

constexpr std::uint64_t kStagingBytesPerDisk = std::uint64_t{512} << 20;

std::uint64_t staging_limit_bytes(const StandbyOptions& options, const GuestMemory& memory) {
  if (options.staging_limit_bytes != 0) return options.staging_limit_bytes;
  return 2 * memory.total_bytes() + options.disks.size() * kStagingBytesPerDisk + (std::uint64_t{64} << 20);
}

struct Preserved {
  std::uint32_t block;
  std::uint64_t offset;
  std::vector<std::byte> content;
};

std::vector<Preserved> preserved_ranges(const StandbyOptions& options, const GuestMemory& memory) {
  std::vector<Preserved> ranges;
  for (const auto& [block, offset, size] : options.preserved) {
    const bool inside = block < memory.block_count() && offset <= memory.block(block).size &&
                        size <= memory.block(block).size - offset;
    if (!inside) throw Error("ERR_COLO_ARGUMENT", 0, "a preserved range lies outside its RAM block");
    ranges.push_back({block, offset, std::vector<std::byte>(size)});
  }
  return ranges;
}

}  // namespace

// Thread rules: the public functions may come from any one thread at a time; the committer's thread is the
// engine's own.
struct StandbyEngine::State {
  State(const StandbyOptions& options, Events given)
      : events(std::move(given)),
        memory(options.pid, options.blocks),
        mailbox(options.mailbox_fd, options.mailbox_state_offset, options.mailbox_state_bytes,
                options.machine),
        cache(memory, staging_limit_bytes(options, memory)),
        disks(options.disks),
        preserved(preserved_ranges(options, memory)),
        committer([this] { run_jobs(); }) {}

  void require_idle();
  void start(std::function<void()> work, Done done);
  void run_jobs();
  void wait_until_flushed();
  CommitResult flush_committed();

  const Events events;
  const GuestMemory memory;
  const VmstateMailbox mailbox;
  RamCache cache;
  StandbyDisks disks;
  std::vector<Preserved> preserved;
  std::unique_ptr<BulkReceiver> receiver;

  // A commit or a sync.
  struct Job {
    std::function<void()> work;
    Done done;
  };

  std::mutex mutex;  // guards the following
  std::condition_variable changed;
  std::optional<Job> job;  // one that the committer hasn't taken up yet
  bool busy = false;       // from the start of a job to its end
  bool closing = false;
  std::thread committer;
};

void StandbyEngine::State::require_idle() {
  const std::lock_guard lock(mutex);
  COLO_ASSERT(!busy && !closing);
}

void StandbyEngine::State::start(std::function<void()> work, Done done) {
  {
    const std::lock_guard lock(mutex);
    COLO_ASSERT(!busy && !closing);
    busy = true;
    job = {std::move(work), std::move(done)};
  }
  changed.notify_all();
}

void StandbyEngine::State::run_jobs() {
  std::unique_lock lock(mutex);
  for (;;) {
    changed.wait(lock, [this] { return job || closing; });
    if (!job) return;
    const Job taken = *std::exchange(job, std::nullopt);
    lock.unlock();
    std::optional<Error> failure;
    try {
      taken.work();
    } catch (const Error& error) {
      failure = error;
    }
    lock.lock();
    busy = false;
    changed.notify_all();
    lock.unlock();
    taken.done(failure ? &*failure : nullptr);
    lock.lock();
  }
}

// Nothing here depends on how far an earlier flush of the same epoch has come, so it can be repeated.
CommitResult StandbyEngine::State::flush_committed() {
  Laps laps;
  CommitResult result{.began_us = laps.began_us()};
  cache.flush();  // INVARIANT 6: RAM first; some devices read it while they are loaded
  for (Preserved& range : preserved) memory.read(range.block, range.offset, range.content);
  result.ram_us = laps.lap_us();
  for (const std::span<const std::byte> payload : cache.committed_disk_writes()) disks.apply(payload);
  result.disks_us = laps.lap_us();
  mailbox.write(cache.committed_vmstate());  // INVARIANT 6: only when RAM and disks are of its epoch
  result.mailbox_us = laps.lap_us();
  // INVARIANT 8: last, so that the disks are of this epoch whatever RAM is.
  for (const std::span<const std::byte> payload : cache.committed_scrub())
    result.scrubbed_pages += check_scrub(memory, payload);
  result.scrub_us = laps.lap_us();
  return result;
}

void StandbyEngine::State::wait_until_flushed() {
  std::unique_lock lock(mutex);
  changed.wait(lock, [this] { return !busy; });
}

StandbyEngine::StandbyEngine(const StandbyOptions& options, Events events)
    : state_(std::make_unique<State>(options, std::move(events))) {}

StandbyEngine::~StandbyEngine() { close(); }

void StandbyEngine::open_session(const std::string& token, std::uint64_t generation, unsigned connections) {
  COLO_ASSERT(token.size() == kTokenBytes && connections >= 1 && connections <= kConnectionsMax);
  close_session();
  state_->receiver = std::make_unique<BulkReceiver>(
      BulkReceiver::Destination{state_->memory, state_->cache, state_->disks, state_->mailbox,
                                [state = state_.get()] { state->wait_until_flushed(); }},
      state_->events, token, generation, connections);
}

void StandbyEngine::add_connection(Connection connection, const std::string& preface) {
  if (!state_->receiver) throw Error("ERR_COLO_PEER", 0, "bulk connection refused: no session is open");
  state_->receiver->add_connection(std::move(connection), parse_preface(std::as_bytes(std::span(preface))));
}

void StandbyEngine::open_epoch(std::uint64_t epoch) {
  COLO_ASSERT(state_->receiver);
  state_->receiver->open_epoch(epoch);
}

void StandbyEngine::commit(std::uint64_t epoch, CommitDone done) {
  State& state = *state_;
  state.require_idle();
  state.cache.commit(epoch);
  const auto result = std::make_shared<CommitResult>();
  state.start([&state, result] { *result = state.flush_committed(); },
              [result, done = std::move(done)](const Error* error) { done(error, *result); });
}

void StandbyEngine::sync_disks(Done done) {
  State& state = *state_;
  state.start([&state] { state.disks.sync(); }, std::move(done));
}

void StandbyEngine::restore_preserved() {
  state_->require_idle();
  for (const Preserved& range : state_->preserved) {
    const MemoryWrite back{range.offset, range.content.data(), range.content.size()};
    state_->memory.write(range.block, std::span(&back, 1));
  }
}

void StandbyEngine::close_session() {
  // Its threads end here, and only then does what they filled go away. INVARIANT 2: thrown away whole.
  state_->receiver.reset();
  state_->cache.discard();
}

void StandbyEngine::close() {
  close_session();
  {
    const std::lock_guard lock(state_->mutex);
    state_->closing = true;
  }
  state_->changed.notify_all();
  if (state_->committer.joinable()) state_->committer.join();
}

}  // namespace colo
