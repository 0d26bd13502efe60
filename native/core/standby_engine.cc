#include "standby_engine.h"

#include <condition_variable>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <utility>

#include "bulk_receiver.h"
#include "ram_cache.h"
#include "vmstate_mailbox.h"

namespace colo {
namespace {

std::uint64_t staging_limit_bytes(const StandbyOptions& options, const GuestMemory& memory) {
  if (options.staging_limit_bytes != 0) return options.staging_limit_bytes;
  return 2 * memory.total_bytes() + (std::uint64_t{64} << 20);
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
        preserved(preserved_ranges(options, memory)),
        committer([this] { run_commits(); }) {}

  void run_commits();
  void wait_until_flushed();
  void flush_committed();

  const Events events;
  const GuestMemory memory;
  const VmstateMailbox mailbox;
  RamCache cache;
  std::vector<Preserved> preserved;
  std::unique_ptr<BulkReceiver> receiver;

  std::mutex mutex;  // guards `commit_done`, `flushing` and `closing`
  std::condition_variable changed;
  std::optional<Done> commit_done;  // a commit that the committer hasn't taken up yet
  bool flushing = false;
  bool closing = false;
  std::thread committer;
};

void StandbyEngine::State::run_commits() {
  std::unique_lock lock(mutex);
  for (;;) {
    changed.wait(lock, [this] { return commit_done || closing; });
    if (!commit_done) return;
    const Done done = *std::exchange(commit_done, std::nullopt);
    lock.unlock();
    std::optional<Error> failure;
    try {
      flush_committed();
    } catch (const Error& error) {
      failure = error;
    }
    lock.lock();
    flushing = false;
    changed.notify_all();
    lock.unlock();
    done(failure ? &*failure : nullptr);
    lock.lock();
  }
}

void StandbyEngine::State::flush_committed() {
  cache.flush();  // INVARIANT 6: RAM first; some devices read it while they are loaded
  for (Preserved& range : preserved) memory.read(range.block, range.offset, range.content);
  mailbox.write(cache.committed_vmstate());
}

void StandbyEngine::State::wait_until_flushed() {
  std::unique_lock lock(mutex);
  changed.wait(lock, [this] { return !flushing; });
}

StandbyEngine::StandbyEngine(const StandbyOptions& options, Events events)
    : state_(std::make_unique<State>(options, std::move(events))) {}

StandbyEngine::~StandbyEngine() { close(); }

void StandbyEngine::open_session(const std::string& token, std::uint64_t generation, unsigned connections) {
  COLO_ASSERT(token.size() == kTokenBytes && connections >= 1 && connections <= kConnectionsMax);
  close_session();
  state_->receiver = std::make_unique<BulkReceiver>(
      BulkReceiver::Destination{state_->memory, state_->cache, state_->mailbox,
                                [state = state_.get()] { state->wait_until_flushed(); }},
      state_->events, token, generation, connections);
}

void StandbyEngine::add_connection(int fd, const std::string& preface) {
  UniqueFd owned(fd);
  if (!state_->receiver) throw Error("ERR_COLO_PEER", 0, "bulk connection refused: no session is open");
  state_->receiver->add_connection(std::move(owned), parse_preface(std::as_bytes(std::span(preface))));
}

void StandbyEngine::open_epoch(std::uint64_t epoch) {
  COLO_ASSERT(state_->receiver);
  state_->receiver->open_epoch(epoch);
}

void StandbyEngine::commit(std::uint64_t epoch, Done done) {
  {
    const std::lock_guard lock(state_->mutex);
    COLO_ASSERT(!state_->flushing && !state_->closing);
    state_->cache.commit(epoch);
    state_->flushing = true;
    state_->commit_done = std::move(done);
  }
  state_->changed.notify_all();
}

void StandbyEngine::restore_preserved() {
  {
    const std::lock_guard lock(state_->mutex);
    COLO_ASSERT(!state_->flushing);
  }
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
