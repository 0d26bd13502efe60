#include "disk_log.h"

#include <algorithm>
#include <utility>

#include "error.h"

namespace colo {
namespace {

// A limit on what is remembered; the protocol has at most two checkpoints that were sent and not loaded.
constexpr std::size_t kUnconfirmedMax = 64;

BlockRun blocks_of(std::uint64_t offset, std::uint64_t length) {
  const std::uint64_t first = offset / kDiskBlockBytes;
  return {first, (offset + length - 1) / kDiskBlockBytes - first + 1};
}

void set_all_of(DirtyBitmap& bitmap, std::span<const BlockRun> runs) {
  for (const BlockRun& run : runs) bitmap.set(run.first, run.count);
}

}  // namespace

// --- the writes of an epoch
// ---------------------------------------------------------------------------------------------------------

void DiskWrites::keep(WriteChunk chunk) {
  if (chunk && (chunks_.empty() || chunks_.back() != chunk)) chunks_.push_back(std::move(chunk));
}

void DiskWrites::add_entry(const DiskWrite& write) {
  entries_.push_back(write);
  bytes_ += write.length;
  const BlockRun blocks = blocks_of(write.offset, write.length);
  if (!runs_.empty()) {
    // Most guests write one place after the other.
    BlockRun& last = runs_.back();
    if (blocks.first >= last.first && blocks.first <= last.first + last.count) {
      last.count = std::max(last.count, blocks.first + blocks.count - last.first);
      return;
    }
  }
  runs_.push_back(blocks);
}

void DiskWrites::add(WriteRoom room, std::uint64_t offset) {
  for (WriteRoom::Piece& piece : room.pieces) {
    for (std::span<std::byte> rest = piece.bytes; !rest.empty();) {
      const std::span<std::byte> entry = rest.first(std::min<std::size_t>(rest.size(), kDiskEntryBytesMax));
      add_entry({offset, entry.size(), entry.data()});
      offset += entry.size();
      rest = rest.subspan(entry.size());
    }
    keep(std::move(piece.chunk));
  }
  charge_.join(std::move(room.charge));
}

void DiskWrites::add_zeros(WriteRoom room, std::uint64_t offset, std::uint64_t length) {
  add_entry({offset, length, nullptr});
  charge_.join(std::move(room.charge));
}

void DiskWrites::append(DiskWrites&& later) {
  entries_.insert(entries_.end(), later.entries_.begin(), later.entries_.end());
  runs_.insert(runs_.end(), later.runs_.begin(), later.runs_.end());
  for (WriteChunk& chunk : later.chunks_) keep(std::move(chunk));
  charge_.join(std::move(later.charge_));
  bytes_ += later.bytes_;
}

// --- the log
// ------------------------------------------------------------------------------------------------------------------------

DiskLog::DiskLog(const DiskLogOptions& options, Events events)
    : options_(options),
      events_(std::move(events)),
      memory_(options.limit_bytes, options.stall_ms),
      differing_(disk_blocks(options.size_bytes)),
      first_copy_(disk_blocks(options.size_bytes)),
      running_(std::make_shared<DiskWrites>()) {
  COLO_ASSERT(options.size_bytes > 0 && options.limit_bytes >= kWriteBytesMax);
  differing_.set_all();
}

WriteRoom DiskLog::reserve(std::uint64_t length) {
  WriteRoom room = memory_.take(length);
  if (memory_.held_bytes() > 2 * options_.limit_bytes) {
    fail("the guest writes to disk '" + options_.id + "' faster than the standby takes it: " +
             std::to_string(memory_.held_bytes() >> 20) + " MiB wait to be sent",
         false);
  }
  return room;
}

template <class Add>
void DiskLog::record(std::uint64_t offset, std::uint64_t length, const Add& add) {
  COLO_ASSERT(length > 0 && offset <= options_.size_bytes && length <= options_.size_bytes - offset);
  const BlockRun blocks = blocks_of(offset, length);
  bool pressure = false;
  {
    const std::lock_guard lock(mutex_);
    ++writes_;
    if (session_ != Session::open) {
      differing_.set(blocks.first, blocks.count);
      return;
    }
    if (differing_.all_set(blocks.first, blocks.count)) return;
    add(*running_);
    pressure = reached_pressure_locked();
  }
  if (pressure) events_.pressure();
}

bool DiskLog::reached_pressure_locked() {
  if (pressure_reported_ || memory_.held_bytes() < options_.pressure_bytes) return false;
  return pressure_reported_ = true;
}

void DiskLog::append(WriteRoom room, std::uint64_t offset) {
  record(offset, room.length, [&](DiskWrites& writes) { writes.add(std::move(room), offset); });
}

void DiskLog::append_zeros(std::uint64_t offset, std::uint64_t length) {
  WriteRoom room = reserve(0);
  record(offset, length, [&](DiskWrites& writes) { writes.add_zeros(std::move(room), offset, length); });
}

void DiskLog::lose(const std::string& reason) { fail(reason, true); }

void DiskLog::fail(const std::string& reason, bool all_differ) {
  Retired retired;  // let go after the lock
  {
    const std::lock_guard lock(mutex_);
    if (all_differ) differing_.set_all();
    if (session_ != Session::open) return;
    retired = let_go_locked();
    session_ = Session::failed;
    failure_ = reason;
  }
  events_.failed(reason);
}

// INVARIANT 3: whatever isn't confirmed differs again.
DiskLog::Retired DiskLog::let_go_locked() {
  memory_.set_waiting(false);
  if (!first_copy_confirmed_) differing_.merge(first_copy_);
  first_copy_.clear();
  first_copy_confirmed_ = true;
  for (const Unconfirmed& sent : unconfirmed_) set_all_of(differing_, sent.runs);
  unconfirmed_.clear();
  Retired retired;
  for (auto* writes : {&sealed_, &running_}) {
    if (!*writes) continue;
    set_all_of(differing_, (*writes)->runs_);
    retired.push_back(std::exchange(*writes, nullptr));
  }
  running_ = std::make_shared<DiskWrites>();
  return retired;
}

void DiskLog::begin_session(bool all_differ) {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(session_ != Session::open);
  if (all_differ) differing_.set_all();
  session_ = Session::open;
  first_copy_confirmed_ = false;
  copy_cursor_ = 0;
  pressure_reported_ = false;
  memory_.set_waiting(true);
}

void DiskLog::end_session() {
  Retired retired;  // let go after the lock
  const std::lock_guard lock(mutex_);
  if (session_ == Session::open) retired = let_go_locked();
  session_ = Session::none;
}

void DiskLog::require_session() const {
  const std::lock_guard lock(mutex_);
  require_session_locked();
}

void DiskLog::require_session_locked() const {
  if (session_ == Session::failed) throw Error("ERR_COLO_DISK", 0, failure_);
  if (session_ == Session::none)
    throw Error("ERR_COLO_LINK", 0, "no session of disk '" + options_.id + "' is open");
}

BlockRun DiskLog::next_differing(std::uint64_t blocks_max) {
  const std::lock_guard lock(mutex_);
  require_session_locked();
  const BlockRun run = differing_.next_run(copy_cursor_, blocks_max);
  copy_cursor_ = run.first + run.count;
  if (run.count == 0) return run;
  first_copy_.set(run.first, run.count);
  differing_.clear(run.first, run.count);
  return run;
}

std::shared_ptr<const DiskWrites> DiskLog::take_first_copy_writes() {
  const std::lock_guard lock(mutex_);
  require_session_locked();
  COLO_ASSERT(!sealed_);
  set_all_of(first_copy_, running_->runs_);
  memory_.set_waiting(true);  // after the stop that protected the pages
  return std::exchange(running_, std::make_shared<DiskWrites>());
}

std::uint64_t DiskLog::seal(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  if (session_ != Session::open) return 0;
  COLO_ASSERT(!sealed_);
  sealed_ = std::exchange(running_, std::make_shared<DiskWrites>());
  sealed_epoch_ = epoch;
  running_->entries_.reserve(sealed_->entries_.size());
  pressure_reported_ = false;
  memory_.set_waiting(true);
  return sealed_->bytes();
}

void DiskLog::unseal() {
  std::shared_ptr<DiskWrites> later;
  const std::lock_guard lock(mutex_);
  if (!sealed_) return;
  later = std::exchange(running_, std::exchange(sealed_, nullptr));
  running_->append(std::move(*later));
}

std::shared_ptr<const DiskWrites> DiskLog::take_sealed(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  require_session_locked();
  // Nothing was sealed: the session began after the capture.
  if (!sealed_) throw Error("ERR_COLO_LINK", 0, "disk '" + options_.id + "' wasn't captured in this session");
  COLO_ASSERT(sealed_epoch_ == epoch);
  if (differing_.next_run(copy_cursor_, 1).count != 0) {
    throw Error("ERR_COLO_DISK", 0,
                "blocks of disk '" + options_.id + "' have not been copied to the standby");
  }
  if (unconfirmed_.size() >= kUnconfirmedMax) {
    throw Error("ERR_COLO_DISK", 0,
                "the last " + std::to_string(kUnconfirmedMax) + " checkpoints of disk '" + options_.id +
                    "' were sent and never confirmed");
  }
  unconfirmed_.push_back({epoch, std::move(sealed_->runs_)});
  return std::exchange(sealed_, nullptr);
}

void DiskLog::confirm(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  if (session_ != Session::open) return;
  bool loaded = false;
  for (; !unconfirmed_.empty() && unconfirmed_.front().epoch <= epoch; loaded = true)
    unconfirmed_.pop_front();
  if (!loaded || first_copy_confirmed_) return;
  first_copy_.clear();
  first_copy_confirmed_ = true;
}

void DiskLog::hurry() { memory_.set_waiting(false); }

DiskLogStats DiskLog::stats() const {
  const std::lock_guard lock(mutex_);
  return {memory_.held_bytes(), writes_, differing_.count()};
}

}  // namespace colo
