#include "primary_engine.h"

#include <sys/stat.h>

#include <cstring>
#include <mutex>
#include <optional>
#include <span>
#include <utility>

#include "bulk_sender.h"
#include "capture.h"
#include "checkpoint_stream.h"
#include "job_thread.h"
#include "laps.h"
#include "scrubber.h"
#include "shadow.h"

namespace colo {
namespace {

std::unique_ptr<DirtyTracker> make_tracker(const PrimaryOptions& options, const GuestMemory& memory,
                                           const Shadow* shadow, std::string& reason) {
  using Wanted = PrimaryOptions::Tracker;
  if (options.tracker == Wanted::compare) {
    if (shadow == nullptr) throw Error("ERR_COLO_ARGUMENT", 0, "the compare tracker needs the shadow");
    reason = "asked for";
    return make_compare_tracker(memory, *shadow);
  }
  try {
    return make_userfaultfd_tracker(memory);
  } catch (const Error& error) {
    const bool unavailable = std::strncmp(error.code(), "ERR_COLO_UFFD_", 14) == 0;
    if (!unavailable || options.tracker == Wanted::userfaultfd || shadow == nullptr) throw;
    reason = error.what();
    return make_compare_tracker(memory, *shadow);
  }
}

std::unique_ptr<Scrubber> make_scrubber(const PrimaryOptions& options, const GuestMemory& memory,
                                        const Shadow* shadow, TrackerKind tracker) {
  const std::uint64_t slice_pages = options.scrub_slice_bytes / kPageSize;
  if (slice_pages == 0) return nullptr;
  return std::make_unique<Scrubber>(memory, tracker == TrackerKind::compare ? shadow : nullptr, slice_pages);
}

void read_vmstate(int fd, std::vector<std::byte>& out) {
  struct stat status = {};
  if (::fstat(fd, &status) != 0) throw_errno("ERR_COLO_VMSTATE", "looking at the saved device state");
  if (status.st_size == 0 || status.st_size > kVmstateBytesMax) {
    throw Error("ERR_COLO_VMSTATE", 0, "saved device state of " + std::to_string(status.st_size) + " bytes");
  }
  out.resize(static_cast<std::size_t>(status.st_size));
  for (std::size_t done = 0; done < out.size();) {
    const ssize_t got = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw_errno("ERR_COLO_VMSTATE", "reading the saved device state");
    if (got == 0)
      throw Error("ERR_COLO_VMSTATE", 0, "the saved device state became shorter while it was read");
    done += static_cast<std::size_t>(got);
  }
}

}  // namespace

// `mutex` guards `sender` and the beginning of the disks' sessions; everything above belongs to the job in
// progress, or to the caller while there is none.
struct PrimaryEngine::State {
  explicit State(const PrimaryOptions& options)
      : memory(options.pid, options.blocks),
        shadow(options.shadow ? std::make_unique<Shadow>(memory) : nullptr),
        tracker(make_tracker(options, memory, shadow.get(), info.reason)),
        pool(std::in_place, options.threads),
        staging(memory.total_bytes(), options.staging_resident_bytes),
        scrubber(make_scrubber(options, memory, shadow.get(), tracker->kind())),
        disks(options.disks) {
    info.kind = tracker->kind();
    for (std::size_t i = 0; i < memory.block_count(); ++i) {
      info.access.push_back(memory.access(i));
      dirty.emplace_back(memory.block(i).pages());
    }
  }

  BulkSender& link() const;
  void begin_disk_sessions(const std::vector<bool>& all_differ);
  void end_disk_sessions();
  void unseal_disks();
  void sync_disks(const std::vector<bool>& all_differ, std::uint64_t bytes_per_second,
                  const std::function<void(SyncProgress)>& progress);
  void forget_captured();
  void drop_scrub();
  void scrub_next();
  ScrubFrames scrub_frames() const;
  CaptureResult capture(std::uint64_t epoch, OutputGate* gate);
  TransmitResult transmit(std::uint64_t epoch, int vmstate_fd);

  TrackerInfo info;
  GuestMemory memory;
  std::unique_ptr<Shadow> shadow;
  std::unique_ptr<DirtyTracker> tracker;
  std::optional<WorkerPool> pool;
  Staging staging;
  std::unique_ptr<Scrubber> scrubber;  // nullptr: no scrub
  const std::vector<std::shared_ptr<DiskExport>> disks;
  std::vector<DirtyBitmap>
      dirty;  // INVARIANT 3: every page that the secondary doesn't have and the tracker has told of
  std::vector<CapturedRun> captured;
  std::uint64_t captured_pages = 0;
  std::optional<std::uint64_t> captured_epoch;
  ScrubSlice scrubbed;  // what belongs to the captured checkpoint
  std::vector<std::byte> vmstate;
  bool synced = false;  // the shadow equals what the secondary has

  std::mutex mutex;
  std::shared_ptr<BulkSender> sender;
  std::once_flag ended;
  JobThread jobs{"the engine"};
};

BulkSender& PrimaryEngine::State::link() const {
  if (!sender) throw Error("ERR_COLO_LINK", 0, "there is no bulk connection");
  return *sender;
}

void PrimaryEngine::State::begin_disk_sessions(const std::vector<bool>& all_differ) {
  COLO_ASSERT(all_differ.size() == disks.size());
  // Together with the look at the link, so that a disconnect() finds these sessions, or they aren't begun.
  const std::lock_guard lock(mutex);
  if (!sender || sender->is_cut()) throw Error("ERR_COLO_LINK", 0, "there is no bulk connection");
  for (std::size_t i = 0; i < disks.size(); ++i) {
    disks[i]->log().end_session();
    disks[i]->log().begin_session(all_differ[i]);
  }
}

void PrimaryEngine::State::end_disk_sessions() {
  for (const auto& disk : disks) disk->log().end_session();
}

void PrimaryEngine::State::sync_disks(const std::vector<bool>& all_differ, std::uint64_t bytes_per_second,
                                      const std::function<void(SyncProgress)>& progress) {
  synced = false;
  begin_disk_sessions(all_differ);
  try {
    // After the sessions have begun: a mirror that ends from now on is noticed by its log.
    for (const auto& disk : disks) disk->require_mirror();
    link().send_disks(disks, bytes_per_second, progress);
  } catch (...) {
    end_disk_sessions();
    throw;
  }
}

void PrimaryEngine::State::unseal_disks() {
  for (const auto& disk : disks) disk->log().unseal();
}

void PrimaryEngine::State::drop_scrub() {
  scrubbed = {};
  if (!scrubber) return;
  scrubber->stop();
  scrubber->wait_for_shadow();
}

// After a checkpoint's capture, and once its sending doesn't want the processor any more.
void PrimaryEngine::State::scrub_next() {
  if (scrubber && synced) scrubber->begin();
}

ScrubFrames PrimaryEngine::State::scrub_frames() const {
  return scrubber ? scrubber->frames_of(scrubbed, dirty) : ScrubFrames{};
}

void PrimaryEngine::State::forget_captured() {
  unseal_disks();
  captured.clear();
  scrubbed = {};
  captured_epoch.reset();
  staging.trim(captured_pages * kPageSize);
  captured_pages = 0;
}

CaptureResult PrimaryEngine::State::capture(std::uint64_t epoch, OutputGate* gate) {
  COLO_ASSERT(!captured_epoch);
  CaptureResult result;
  Laps laps;
  result.began_us = laps.began_us();
  if (scrubber) scrubbed = scrubber->take();
  if (gate != nullptr) gate->seal(epoch);
  for (const auto& disk : disks) result.disk_bytes += disk->log().seal(epoch);
  result.seal_us = laps.lap_us();
  try {
    tracker->collect(dirty, *pool);
    result.scan_us = laps.lap_us();
    captured.clear();
    result.pages = captured_pages = capture_pages(memory, dirty, staging, *pool, captured);
    result.copy_us = laps.lap_us();
  } catch (...) {
    unseal_disks();
    throw;
  }
  captured_epoch = epoch;
  return result;
}

TransmitResult PrimaryEngine::State::transmit(std::uint64_t epoch, int vmstate_fd) {
  COLO_ASSERT(captured_epoch == epoch);
  captured_epoch.reset();
  try {
    if (!synced) throw Error("ERR_COLO_LINK", 0, "the secondary has no first copy in this session");
    read_vmstate(vmstate_fd, vmstate);
  } catch (const Error&) {
    unseal_disks();  // nothing has been sent
    throw;
  }
  synced = false;  // until it has gone well: half an epoch leaves the shadow unknown
  TransmitResult result;
  try {
    std::vector<std::shared_ptr<const DiskWrites>> writes;  // their room is given back when all is sent
    for (const auto& disk : disks) writes.push_back(disk->log().take_sealed(epoch));
    if (scrubber) scrubber->wait_for_shadow();
    const ScrubFrames scrub = scrub_frames();
    result = link().send_epoch(epoch, captured, vmstate, scrub.payloads, writes);
    result.scrub_checked_pages = scrub.checked_pages;
    result.scrub_skipped_pages = scrub.skipped_pages;
  } catch (...) {
    end_disk_sessions();  // INVARIANT 3: what was taken differs again; and no write waits for room any more
    throw;
  }
  synced = true;
  for (DirtyBitmap& block : dirty) block.clear();  // INVARIANT 3: nowhere else but in protect()
  if (scrubber) {
    scrubber->sent(scrubbed);
    result.scrub_rounds = scrubber->rounds();
    result.scrub_cpu_us = scrubbed.cpu_ns / 1000;
  }
  forget_captured();
  scrub_next();
  return result;
}

PrimaryEngine::PrimaryEngine(const PrimaryOptions& options) : state_(std::make_unique<State>(options)) {}

PrimaryEngine::~PrimaryEngine() { close(); }

TrackerInfo PrimaryEngine::info() const { return state_->info; }

void PrimaryEngine::protect(Done done) {
  state_->jobs.start(
      [state = state_.get()] {
        // INVARIANT 5: the caller has stopped the VM. From here to the end of the next sync() only the
        // tracker knows what the secondary lacks, and that sync sends everything else.
        state->synced = false;
        state->drop_scrub();
        state->tracker->protect_all();
        for (DirtyBitmap& block : state->dirty) block.clear();
        state->forget_captured();
      },
      std::move(done));
}

void PrimaryEngine::connect(const std::string& host, std::uint16_t port, const std::string& token,
                            std::uint64_t generation, unsigned connections,
                            std::shared_ptr<const TlsCredentials> credentials, Done done) {
  const auto sender = std::make_shared<BulkSender>(
      state_->memory, state_->shadow.get(),
      BulkSender::Target{host, port, token, generation, connections, std::move(credentials)});
  std::shared_ptr<BulkSender> replaced;
  state_->jobs.require_idle();
  {
    const std::lock_guard lock(state_->mutex);
    replaced = std::exchange(state_->sender,
                             sender);  // before the job begins, so that disconnect() reaches it from now on
    state_->end_disk_sessions();
  }
  state_->jobs.start(
      [state = state_.get(), sender] {
        state->synced = false;
        sender->connect();
      },
      std::move(done));
}

void PrimaryEngine::disconnect() {
  const std::lock_guard lock(state_->mutex);
  if (state_->sender) state_->sender->cut();
  state_->end_disk_sessions();
}

void PrimaryEngine::sync_disks(std::vector<bool> all_differ, std::uint64_t bytes_per_second,
                               std::function<void(SyncProgress)> progress, Done done) {
  state_->jobs.start(
      [state = state_.get(), all_differ = std::move(all_differ), bytes_per_second,
       progress = std::move(progress)] { state->sync_disks(all_differ, bytes_per_second, progress); },
      std::move(done));
}

void PrimaryEngine::hurry() {
  for (const auto& disk : state_->disks) disk->log().hurry();
}

void PrimaryEngine::confirm(std::uint64_t epoch) {
  for (const auto& disk : state_->disks) disk->log().confirm(epoch);
}

void PrimaryEngine::sync(std::uint64_t bytes_per_second, std::function<void(SyncProgress)> progress,
                         Done done) {
  state_->jobs.start(
      [state = state_.get(), bytes_per_second, progress = std::move(progress)] {
        state->synced = false;
        state->drop_scrub();
        try {
          state->link().send_first_copy(state->disks, bytes_per_second, progress);
        } catch (...) {
          state->end_disk_sessions();  // nobody takes from their logs any more
          throw;
        }
        state->synced = true;
        state->scrub_next();
      },
      std::move(done));
}

void PrimaryEngine::capture(std::uint64_t epoch, OutputGate* gate,
                            std::function<void(const Error*, CaptureResult)> done) {
  const auto result = std::make_shared<CaptureResult>();
  state_->jobs.start([state = state_.get(), epoch, gate, result] { *result = state->capture(epoch, gate); },
                     [result, done = std::move(done)](const Error* error) { done(error, *result); });
}

void PrimaryEngine::transmit(std::uint64_t epoch, int vmstate_fd,
                             std::function<void(const Error*, TransmitResult)> done) {
  const auto result = std::make_shared<TransmitResult>();
  state_->jobs.start(
      [state = state_.get(), epoch, vmstate_fd, result] { *result = state->transmit(epoch, vmstate_fd); },
      [result, done = std::move(done)](const Error* error) { done(error, *result); });
}

void PrimaryEngine::abandon() {
  state_->jobs.require_idle();
  state_->forget_captured();  // INVARIANT 3: `dirty` keeps the pages
  state_->scrub_next();
}

void PrimaryEngine::close() {
  state_->jobs.close();  // before what it may wait for is cut, so that it ends for this reason
  {
    const std::lock_guard lock(state_->mutex);
    if (state_->sender) state_->sender->cut();
    state_->end_disk_sessions();
  }
  std::call_once(state_->ended, [this] {
    state_->jobs.join();
    state_->scrubber.reset();
    state_->tracker.reset();  // lifts the protection
    state_->pool.reset();
    const std::lock_guard lock(state_->mutex);
    state_->sender.reset();
  });
}

}  // namespace colo
