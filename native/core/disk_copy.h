// Brings the standby's disks up to date while the guest runs, as part of epoch 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "checkpoint_stream.h"
#include "disk_export.h"
#include "link_sockets.h"
#include "pace.h"
#include "primary_engine.h"

namespace colo {

// Adds the writes to the frames of `stream`, which refers to their data until it has sent them.
void add_disk_writes(StreamWriter& stream, std::uint16_t disk, const DiskWrites& writes);

// Sends what has been logged since the last time, as part of epoch 0. Throws as DiskLog::require_session(),
// and ERR_COLO_LINK.
void send_first_copy_writes(StreamWriter& stream, std::span<const std::shared_ptr<DiskExport>> disks);

// Goes over the differing blocks, window by window:
//   1. take a run of them out of the bitmap: from now on writes to them are logged;
//   2. send what has been logged so far;
//   3. read them from the source;
//   4. ask by their hashes which of them are others on the standby, and send those.
// A write that is logged before 3 is sent before the block, whose content includes it: QEMU had written the
// source before. One that is logged later is sent after the block. So nothing may be sent from the logs
// between 3 and the end of 4.
class DiskCopy {
 public:
  // Each disk's session has begun and its source is connected (throws ERR_COLO_DISK where it isn't).
  // Everything must outlive the copy.
  DiskCopy(std::span<const std::shared_ptr<DiskExport>> disks, StreamWriter& stream, LinkSockets& sockets,
           std::uint64_t bytes_per_second);

  // Throws ERR_COLO_LINK, ERR_COLO_DISK. At most `bytes_per_second` go out (0: no limit), and what the guest
  // writes meanwhile. `progress` is called in the calling thread, with blocks that were found equal among
  // what is done.
  void run(const std::function<void(SyncProgress)>& progress);

  // From any thread: a read from a source in progress ends, which makes that source unusable, and none is
  // begun.
  void cut();

 private:
  struct Block {
    std::uint64_t number = 0;
    std::span<std::byte> bytes;  // its place in `buffer_`
    bool zeros = false;          // then `bytes` may not have been written
    bool differs = false;
  };

  std::uint64_t take_window(DiskLog& log);
  void read_window(std::size_t disk);
  void note_hole(std::span<std::byte> hole);
  void hash_window();
  void ask(std::uint16_t disk);
  void send_window(std::uint16_t disk);

  const std::span<const std::shared_ptr<DiskExport>> disks_;
  std::vector<std::shared_ptr<NbdClient>> sources_;
  StreamWriter& stream_;
  LinkSockets& sockets_;
  Pace pace_;
  const std::uint64_t window_blocks_;
  const std::unique_ptr<std::byte[]> buffer_;
  std::vector<BlockRun> runs_;  // of the window
  std::vector<Block> blocks_;   // of the window
  std::vector<BlockHash> hashes_;
  std::vector<std::byte> differs_;

  std::mutex mutex_;  // guards everything below
  NbdClient* reading_ = nullptr;
  bool cut_ = false;
};

}  // namespace colo
