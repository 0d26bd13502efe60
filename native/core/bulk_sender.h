// The sending end of one session's bulk connections: the first copy of RAM, and then checkpoint after
// checkpoint.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "capture.h"
#include "disk_copy.h"
#include "guest_memory.h"
#include "link_sockets.h"
#include "primary_engine.h"
#include "shadow.h"
#include "worker_pool.h"

namespace colo {

// Each connection is a lane: a thread while a job runs, with an encoder of its own. A job that fails on one
// lane cuts them all, and leaves the shadow unknown.
class BulkSender {
 public:
  struct Target {
    std::string host;
    std::uint16_t port = 0;
    std::string token;  // kTokenBytes long
    std::uint64_t generation = 0;
    unsigned connections = 1;
    std::shared_ptr<const TlsCredentials> credentials;  // null: plain text
  };

  // `shadow` may be nullptr: pages are sent whole then. Both must outlive the sender.
  BulkSender(const GuestMemory& memory, Shadow* shadow, Target target);
  ~BulkSender();

  // The jobs, one at a time. They throw ERR_COLO_LINK when the link is the reason. A name is resolved in
  // connect(), which nothing interrupts.
  void connect();

  // Epoch 0, first part: brings the standby's disks up to date (disk_copy.h). Their sessions have begun.
  void send_disks(std::span<const std::shared_ptr<DiskExport>> disks, std::uint64_t bytes_per_second,
                  const std::function<void(SyncProgress)>& progress);

  // Epoch 0, the rest: sends all of RAM, slice by slice, and fills the shadow. The guest may run: what it
  // writes meanwhile is the tracker's business, and what it writes to `disks` goes across between the slices.
  // At most `bytes_per_second` go out (0: no limit), without what is written to disks. `progress` is called
  // in the calling thread. Throws ERR_COLO_GUEST_MEMORY, too, and ERR_COLO_DISK.
  void send_first_copy(std::span<const std::shared_ptr<DiskExport>> disks, std::uint64_t bytes_per_second,
                       const std::function<void(SyncProgress)>& progress);

  // Sends the captured runs, shared out equally, the device state, the scrub's payloads and what was written
  // to each disk as one epoch.
  TransmitResult send_epoch(std::uint64_t epoch, std::span<const CapturedRun> runs,
                            std::span<const std::byte> vmstate, std::span<const std::vector<std::byte>> scrub,
                            std::span<const std::shared_ptr<const DiskWrites>> disks);

  // From any thread: ends the job in progress and every later one.
  void cut();
  bool is_cut() const { return cut_; }

 private:
  struct Lane;
  class FirstCopy;

  void begin_first_copy();
  void run_lanes(const std::function<void(Lane&)>& job);
  void encode_share(Lane& lane, std::span<const CapturedRun> runs, std::uint64_t begin, std::uint64_t end);

  const GuestMemory& memory_;
  Shadow* const shadow_;
  const Target target_;
  WorkerPool pool_;
  LinkSockets sockets_;
  std::vector<std::unique_ptr<Lane>> lanes_;
  bool first_copy_begun_ = false;

  std::atomic<bool> cut_ = false;
  std::mutex disk_copy_mutex_;
  DiskCopy* disk_copy_ = nullptr;  // the one in progress
};

}  // namespace colo
