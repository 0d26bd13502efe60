// What the guest writes to one of its disks, on the primary: by epoch while there is a standby, as a bitmap of
// blocks that the standby lacks while there is none.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "dirty_bitmap.h"
#include "disk_stream.h"

namespace colo {

struct DiskLogOptions {
  std::uint64_t size_bytes = 0;
  // What the writes of all epochs together may hold. From `pressure_bytes` on a checkpoint is asked for; from
  // `limit_bytes` on each write waits for room, for at most `stall_ms`: QEMU's `stop` waits for the writes in
  // flight, so a write that waited for the checkpoint that makes room would wait for ever. At twice the limit
  // the standby is given up: the log becomes a bitmap, and nothing grows.
  std::uint64_t limit_bytes = 64u << 20;
  std::uint64_t pressure_bytes = 48u << 20;
  unsigned stall_ms = 100;
};

struct DiskLogStats {
  std::uint64_t logged_bytes = 0;   // held now
  std::uint64_t writes = 0;         // since the beginning, also those that were only remembered
  std::uint64_t differing_blocks = 0;  // the standby lacks them, as far as this side knows
};

// Writes in the order in which they were answered, with the memory that their data lies in.
class DiskWrites;  // DESIGN: entries() -> std::span<const DiskWrite>, bytes(); gives its room back when destroyed

// INVARIANT 3, for disks: a block's difference is forgotten only together with having its content in a
// checkpoint that the standby has loaded; if the session ends before, the block differs again.
//
// Thread rules: every function may be called from any thread; events come from the thread that appends.
class DiskLog {
 public:
  struct Events {
    std::function<void()> pressure;                    // once a seal
    std::function<void(const std::string& reason)> overflow;  // the standby was given up
  };
  DiskLog(const DiskLogOptions& options, Events events);

  // --- the export's side ---
  // Room for one write's data. Waits for it as the options say; never fails.
  class Room;
  Room reserve(std::uint64_t length);
  // The data lies in `room`: from now on the write belongs to the running epoch. Only after this may the guest
  // be told that it is done. Without a session the block differs, and that is all. A write to blocks that are
  // still to be copied isn't logged: the copy will find it on the source, which QEMU writes first.
  void append(Room room, std::uint64_t offset);
  void append_zeros(std::uint64_t offset, std::uint64_t length);

  // --- the session's side ---
  // From here on writes are logged. `all_differ`: nothing is known of the standby's disk.
  void begin_session(bool all_differ);
  // Everything that isn't confirmed differs again; what is logged is let go.
  void end_session();
  // Takes the next at most `blocks_max` differing blocks, one run, out of the bitmap, BEFORE they are read from
  // the source; from now on writes to them are logged. Count 0: nothing differs any more. Until confirm(1) they
  // are remembered as unconfirmed.
  BlockRun next_differing(std::uint64_t blocks_max);
  // What has been logged since the last call, as part of epoch 0.
  std::shared_ptr<const DiskWrites> take_first_copy_writes();
  // The VM is stopped and drained: what was logged so far is epoch `epoch`'s. After unseal() (the checkpoint was
  // abandoned) it belongs to the next one sealed.
  void seal(std::uint64_t epoch);
  void unseal();
  // The sealed epoch's writes. Throws ERR_COLO_DISK when the session of this disk has ended meanwhile: a
  // checkpoint is never sent without them.
  std::shared_ptr<const DiskWrites> take_sealed(std::uint64_t epoch);
  // The standby has loaded `epoch`: its writes, and those before, are forgotten.
  void confirm(std::uint64_t epoch);
  // `stop` is about to be asked for: writes in flight are taken without waiting for room until the next seal.
  void hurry();

  DiskLogStats stats() const;
};

}  // namespace colo
