// Everything native that the primary does to one VM: tracking, capture, the first copy, and the checkpoint
// stream out.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dirty_tracker.h"
#include "disk_export.h"
#include "error.h"
#include "guest_memory.h"
#include "output_gate.h"
#include "tls_credentials.h"
#include "unique_fd.h"

namespace colo {

struct PrimaryOptions {
  pid_t pid = 0;
  std::vector<RamBlock> blocks;
  unsigned threads = 1;  // for scan and capture
  bool shadow = true;    // false: no deltas on the wire, no compare tracker
  enum class Tracker { automatic, userfaultfd, compare } tracker = Tracker::automatic;
  std::uint64_t staging_resident_bytes = 64u << 20;  // see Staging
  std::uint64_t scrub_slice_bytes = 0;               // hashed for each checkpoint, in whole pages; 0: none
  std::vector<std::shared_ptr<DiskExport>> disks;    // an index here is one on the wire
};

struct TrackerInfo {
  TrackerKind kind;
  std::string reason;                // why the fall-back is in use; empty for userfaultfd
  std::vector<MemoryAccess> access;  // one a block
};

struct CaptureResult {
  std::uint64_t pages = 0;
  std::uint64_t disk_bytes = 0;  // what the guest wrote to its disks in this epoch
  std::uint64_t began_us = 0;    // see monotonic_us(); then one after the other:
  std::uint64_t seal_us = 0, scan_us = 0, copy_us = 0;
};

struct TransmitResult {
  std::uint64_t wire_bytes = 0, raw_bytes = 0;
  std::uint64_t zero_pages = 0, unchanged_pages = 0, delta_pages = 0, raw_pages = 0;
  std::uint64_t began_us = 0, encode_us = 0, total_us = 0;
  // See Scrubber: the pages whose hashes went along, those left out, how often all of RAM has been gone
  // through since the engine began, and the processor time that hashing took.
  std::uint64_t scrub_checked_pages = 0, scrub_skipped_pages = 0, scrub_rounds = 0, scrub_cpu_us = 0;
};

struct SyncProgress {
  std::uint64_t done_bytes = 0, total_bytes = 0;
  std::uint64_t wire_bytes = 0;  // sent by this job so far
};

// One job at a time (asserted) runs on the engine's own thread; `done` is called on that thread with nullptr
// or the Error. close() may be called at any time from any thread, fails the job in progress with
// ERR_COLO_CLOSED, and returns when no thread is left. The order of jobs within a session is: connect,
// sync_disks (when there are disks), protect, sync, then (capture, transmit | abandon) again and again;
// `protect` may also come first. A new session starts with `protect` or `connect` after disconnect().
class PrimaryEngine {
 public:
  using Done = std::function<void(const Error*)>;

  // Attaches: guest memory and the tracker. Throws; QEMU is unharmed then.
  explicit PrimaryEngine(const PrimaryOptions& options);
  ~PrimaryEngine();

  TrackerInfo info() const;

  // Protects all pages and forgets what was dirty. The VM is stopped and drained (invariant 5).
  void protect(Done done);

  // Opens `connections` bulk connections and sends each one's preface with the session's token (16 bytes).
  // `credentials` null: plain text.
  void connect(const std::string& host, std::uint16_t port, const std::string& token,
               std::uint64_t generation, unsigned connections,
               std::shared_ptr<const TlsCredentials> credentials, Done done);

  // Shuts the bulk connections down; a running sync or transmit fails with ERR_COLO_LINK. Ends the disks'
  // sessions, too: what the standby hasn't confirmed differs again (invariant 3). From any thread.
  void disconnect();

  // Brings the standby's disks up to date, as the first part of epoch 0, while the guest runs (disk_copy.h);
  // from here on the guest's writes are logged. `all_differ` has one element a disk (asserted): nothing is
  // known of the standby's. Each disk has its mirror and its source connected (ERR_COLO_DISK). A disconnect()
  // meanwhile may leave a source unusable.
  void sync_disks(std::vector<bool> all_differ, std::uint64_t bytes_per_second,
                  std::function<void(SyncProgress)> progress, Done done);

  // See DiskLog; both from any thread, at any time.
  void hurry();
  void confirm(std::uint64_t epoch);

  // Copies all of RAM to the secondary as epoch 0 while the guest runs; `bytes_per_second` 0 = no limit.
  // `progress` is called on the engine's thread some times a second.
  void sync(std::uint64_t bytes_per_second, std::function<void(SyncProgress)> progress, Done done);

  // Inside the pause, the VM stopped and drained: seals the gate (nullptr: none) and the disks' logs,
  // collects the dirty pages, copies them into staging. INVARIANT 3: until transmit() succeeds, the pages
  // stay in the epoch's bitmap; a failed capture leaves them dirty.
  void capture(std::uint64_t epoch, OutputGate* gate, std::function<void(const Error*, CaptureResult)> done);

  // Encodes the captured pages against the shadow and sends them, the device state (all of `vmstate_fd` from
  // offset 0) and the scrub's hashes as `epoch`. Ends when everything is with the kernel. ERR_COLO_LINK ends
  // the session: the shadow is then unknown and sync() must come first.
  void transmit(std::uint64_t epoch, int vmstate_fd, std::function<void(const Error*, TransmitResult)> done);

  // The captured checkpoint won't be sent: its pages are dirty again (invariant 3). Synchronous, no job
  // running.
  void abandon();

  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace colo
