// What the guest writes to one of its disks, on the primary: by epoch while there is a standby, as a bitmap
// of blocks that the standby lacks while there is none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dirty_bitmap.h"
#include "disk_stream.h"
#include "write_memory.h"

namespace colo {

struct DiskLogOptions {
  std::string id;  // the disk's, for errors
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
  std::uint64_t logged_bytes = 0;      // held now
  std::uint64_t writes = 0;            // since the beginning, also those that were only remembered
  std::uint64_t differing_blocks = 0;  // the standby lacks them, as far as this side knows
};

// Blocks of kDiskBlockBytes that follow one another.
using BlockRun = PageRun;

// Writes in the order in which they were answered, with the memory that their data lies in, which goes back
// with them. Must not outlive the log.
class DiskWrites {
 public:
  std::span<const DiskWrite> entries() const { return entries_; }
  // What the guest wrote, zeros among it.
  std::uint64_t bytes() const { return bytes_; }

 private:
  friend class DiskLog;
  void add(WriteRoom room, std::uint64_t offset);
  void add_zeros(WriteRoom room, std::uint64_t offset, std::uint64_t length);
  void add_entry(const DiskWrite& write);
  void append(DiskWrites&& later);
  void keep(WriteChunk chunk);

  std::vector<DiskWrite> entries_;
  std::vector<BlockRun> runs_;  // that the entries touch
  std::vector<WriteChunk> chunks_;
  WriteCharge charge_;
  std::uint64_t bytes_ = 0;
};

// INVARIANT 3, for disks: a block's difference is forgotten only together with having its content in a
// checkpoint that the standby has loaded; if the session ends before, the block differs again.
//
// Thread rules: every function may be called from any thread; events come, without a lock held, from the
// thread that appends or calls lose().
class DiskLog {
 public:
  struct Events {
    std::function<void()> pressure;  // once a seal
    // Once a session: the standby was given up. Until the next session the log is a bitmap.
    std::function<void(const std::string& reason)> failed;
  };
  // At first all blocks differ.
  DiskLog(const DiskLogOptions& options, Events events);

  std::uint64_t size_bytes() const { return options_.size_bytes; }

  // --- the export's side ---
  // Room for one write's data, at most kWriteBytesMax. Waits for it as the options say; never fails.
  WriteRoom reserve(std::uint64_t length);
  // Whether reserve() would wait now.
  bool must_wait(std::uint64_t length) const { return memory_.must_wait(length); }
  // The data lies in `room`: from now on the write belongs to the running epoch. Only after this may the
  // guest be told that it is done. Without a session the block differs, and that is all. A write to blocks
  // that are all still to be copied isn't logged: the copy will find it on the source, which QEMU writes
  // first. The range isn't empty and lies inside the disk (asserted).
  void append(WriteRoom room, std::uint64_t offset);
  void append_zeros(std::uint64_t offset, std::uint64_t length);
  // Writes may have been missed: every block differs, and a session has failed.
  void lose(const std::string& reason);

  // --- the session's side ---
  // From here on writes are logged. `all_differ`: nothing is known of the standby's disk.
  void begin_session(bool all_differ);
  // Everything that isn't confirmed differs again; what is logged is let go.
  void end_session();
  // Throws ERR_COLO_DISK when the session has failed, ERR_COLO_LINK when there is none.
  void require_session() const;
  // Takes the next at most `blocks_max` differing blocks, one run, out of the bitmap, BEFORE they are read
  // from the source; from now on writes to them are logged. Count 0: nothing differs any more. Until
  // confirm(1) they are remembered as unconfirmed. Throws as require_session().
  BlockRun next_differing(std::uint64_t blocks_max);
  // What has been logged since the last call, as part of epoch 0. Throws as require_session().
  std::shared_ptr<const DiskWrites> take_first_copy_writes();
  // The VM is stopped and drained: what was logged so far is epoch `epoch`'s, and its bytes are returned.
  // After unseal() (the checkpoint was abandoned) it belongs to the next one sealed. Without a session there
  // is nothing to do.
  std::uint64_t seal(std::uint64_t epoch);
  void unseal();
  // The sealed epoch's writes. Throws as require_session(), and ERR_COLO_DISK when blocks still differ: a
  // checkpoint is never sent without what belongs to it.
  std::shared_ptr<const DiskWrites> take_sealed(std::uint64_t epoch);
  // The standby has loaded `epoch`: its writes, and those before, are forgotten.
  void confirm(std::uint64_t epoch);
  // `stop` is about to be asked for: writes in flight are taken without waiting for room until the next seal.
  void hurry();

  DiskLogStats stats() const;

 private:
  enum class Session { none, open, failed };
  struct Unconfirmed {
    std::uint64_t epoch;
    std::vector<BlockRun> runs;
  };
  using Retired = std::vector<std::shared_ptr<DiskWrites>>;

  template <class Add>
  void record(std::uint64_t offset, std::uint64_t length, const Add& add);
  void require_session_locked() const;
  Retired let_go_locked();
  void fail(const std::string& reason, bool all_differ);
  bool reached_pressure_locked();

  const DiskLogOptions options_;
  const Events events_;
  WriteMemory memory_;  // before all that lies in it

  mutable std::mutex mutex_;  // guards everything below
  Session session_ = Session::none;
  std::string failure_;
  // A block is in at least one of these from the write that made it differ until confirm(): `differing_`,
  // `first_copy_`, the runs of `running_` and `sealed_`, `unconfirmed_`.
  DirtyBitmap differing_;
  DirtyBitmap first_copy_;  // taken by next_differing() or written during the first copy, and not confirmed
  bool first_copy_confirmed_ = true;  // `first_copy_` is empty
  std::uint64_t copy_cursor_ = 0;     // nothing before it differs
  std::shared_ptr<DiskWrites> running_;
  std::shared_ptr<DiskWrites> sealed_;  // nullptr: none
  std::uint64_t sealed_epoch_ = 0;
  std::deque<Unconfirmed> unconfirmed_;  // sent, the oldest first
  bool pressure_reported_ = false;       // since the last seal
  std::uint64_t writes_ = 0;
};

}  // namespace colo
