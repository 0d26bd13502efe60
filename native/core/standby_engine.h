// Everything native that the secondary does to one VM: receive, stage, verify, flush, and the vmstate
// mailbox.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "connection.h"
#include "error.h"
#include "guest_memory.h"
#include "standby_disks.h"

namespace colo {

// Bytes that loading a device state overwrites: it resets the machine, and a reset puts boot images into RAM
// again.
struct PreservedRange {
  std::uint32_t block = 0;
  std::uint64_t offset = 0, size = 0;  // in bytes
};

struct StandbyOptions {
  pid_t pid = 0;
  std::vector<RamBlock> blocks;            // in the primary's order: an index on the wire is an index here
  int mailbox_fd = -1;                     // the qcow2 file (usually a memfd) that QEMU has open; not owned
  std::uint64_t mailbox_state_offset = 0;  // where its VM state area begins, in bytes
  std::uint64_t mailbox_state_bytes = 0;   // and how long it is: a longer vmstate is refused
  std::string machine;                     // versioned machine name for the stream's configuration section
  std::vector<PreservedRange> preserved;   // remembered by commit(), put back by restore_preserved()
  std::vector<StandbyDiskOptions> disks;   // in the primary's order: an index on the wire is an index here
  // A peer that sends more is refused. 0: two guest RAMs, 512 MiB for each disk, and 64 MiB.
  std::uint64_t staging_limit_bytes = 0;
};

struct StagedCheckpoint {
  std::uint64_t epoch = 0;
  std::uint64_t pages = 0, wire_bytes = 0, vmstate_bytes = 0;
  std::uint64_t disk_bytes = 0;  // of the DISK frames' payloads
  std::uint64_t began_us = 0,
                received_us = 0;  // the first frame's header (see monotonic_us()); until complete
};

// The steps of a commit, one after the other.
struct CommitResult {
  std::uint64_t began_us = 0;  // see monotonic_us()
  std::uint64_t ram_us = 0, disks_us = 0, mailbox_us = 0, scrub_us = 0;
  std::uint64_t scrubbed_pages = 0;
};

// A session's life: open_session, add_connection (as many as announced), then per epoch: open_epoch ->
// `staged` event -> commit. Epoch 0 (the first copy) is applied to guest RAM and to the disks as it arrives:
// there is no checkpoint to protect yet. ATOMICITY (invariant 2): nothing of an epoch >= 1 touches guest RAM,
// a disk or the mailbox before commit(); every frame was checked whole (ranges, lengths, checksum), and the
// disks have the space for it, before `staged` is reported, so that a commit has nothing left to refuse.
class StandbyEngine {
 public:
  using Done = std::function<void(const Error*)>;
  using CommitDone = std::function<void(const Error*, CommitResult)>;
  struct Events {
    std::function<void(StagedCheckpoint)> staged;  // from a receiver thread
    // The session's stream is unusable. Once a session, from a receiver thread; nothing is staged after it.
    std::function<void(const Error&)> failed;
  };

  StandbyEngine(const StandbyOptions& options, Events events);
  ~StandbyEngine();

  // Drops whatever an earlier session staged (never a committed epoch) and expects `connections` bulk
  // connections whose preface carries this token (16 bytes) and generation. Epoch 0 is open from here on.
  void open_session(const std::string& token, std::uint64_t generation, unsigned connections);

  // Takes over a bulk connection whose preface the acceptor has read (acceptor.h). Throws ERR_COLO_PEER for a
  // wrong token, generation or a connection too many; the connection is closed then.
  void add_connection(Connection connection, const std::string& preface);

  // Frames of `epoch` may come from now on; they are staged. The epoch before has been reported as staged
  // (asserted).
  void open_epoch(std::uint64_t epoch);

  // Flushes a staged epoch: RAM first, then the disks, then the device state into the mailbox (invariant 6);
  // and holds the epoch's hashes against RAM (invariant 8). Runs on the engine's own thread, `done` comes
  // from there, with ERR_COLO_GUEST_MEMORY when QEMU is gone, ERR_COLO_DISK or ERR_COLO_MAILBOX, or
  // ERR_COLO_SCRUB: everything is done then, but RAM isn't the primary's. One at a time (asserted). The last
  // committed epoch can be committed again, which flushes it once more, so that one whose flush has failed is
  // made whole; any other throws ERR_COLO_STATE.
  void commit(std::uint64_t epoch, CommitDone done);

  // Makes durable what was committed: a failover's last step before the VM runs, since its guest may have
  // been told that it is. Runs as commit() does, and not beside one (asserted). `done` gets ERR_COLO_DISK,
  // then and ever after: see StandbyDisk::sync().
  void sync_disks(Done done);

  // After the device state has been loaded: puts the preserved ranges back as the last commit left them
  // (invariant 2). No commit and no sync is in progress (asserted). Throws ERR_COLO_GUEST_MEMORY when QEMU is
  // gone.
  void restore_preserved();

  // Throws away everything staged and not committed, and closes the session's connections. A commit or sync
  // in progress is not touched. No event of the session begins after it; it waits for one in progress, so an
  // event must not call it.
  void close_session();

  // close_session(), waits for a commit or sync in progress, ends all threads.
  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace colo
