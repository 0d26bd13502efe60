// The receiving end of one session's bulk connections.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "checkpoint_stream.h"
#include "connection.h"
#include "error.h"
#include "ram_cache.h"
#include "standby_disks.h"
#include "standby_engine.h"
#include "vmstate_mailbox.h"

namespace colo {

// One thread a connection reads frames, checks them, and puts epoch 0 into guest RAM and onto the disks, and
// every later one into the cache. Nothing that a peer sends can do more than end the session.
class BulkReceiver {
 public:
  struct Destination {
    const GuestMemory& memory;
    RamCache& cache;
    StandbyDisks& disks;
    const VmstateMailbox& mailbox;
    std::function<void()>
        wait_until_flushed;  // returns when no commit of an earlier session is at work on RAM and disks
  };

  // Epoch 0 is open at once. Events come from the connections' threads; none begins after the destructor,
  // which must not run in one.
  BulkReceiver(Destination destination, const StandbyEngine::Events& events, std::string token,
               std::uint64_t generation, unsigned connections);
  ~BulkReceiver();

  // Throws ERR_COLO_PEER; the connection is closed then.
  void add_connection(Connection connection, const BulkPreface& preface);

  // The epoch before must be complete (asserted).
  void open_epoch(std::uint64_t epoch);

 private:
  struct Lane {
    explicit Lane(const GuestMemory& memory) : applier(memory) {}

    unsigned index = 0;
    Connection connection;
    std::thread thread;
    // Of its thread alone:
    std::uint64_t epoch = 0, wire_bytes = 0;
    std::uint64_t vmstate_bytes = 0, disk_bytes = 0, scrub_pages = 0;
    bool ended = false;
    EpochDigest digest;
    PageApplier applier;
    std::unique_ptr<std::byte[]> first_copy;  // one frame's payload, as long as epoch 0 lasts
  };

  void serve(Lane& lane);
  void receive_frame(Lane& lane);
  static void receive(Lane& lane, std::span<std::byte> into);
  void enter_epoch(Lane& lane, std::uint64_t epoch);
  std::span<std::byte> receive_payload(Lane& lane, std::size_t length);
  void receive_pages(Lane& lane, std::size_t length);
  void receive_disk_writes(Lane& lane, std::size_t length);
  void answer_disk_hashes(Lane& lane, std::size_t length);
  void receive_vmstate(Lane& lane, std::size_t length);
  void receive_scrub(Lane& lane, std::size_t length);
  void receive_end(Lane& lane);
  void count_pages(std::uint64_t pages);
  void fail(const Error& error);

  const Destination destination_;
  const StandbyEngine::Events& events_;
  const std::string token_;
  const std::uint64_t generation_;
  const std::vector<std::uint64_t> block_pages_;
  std::mutex mutex_;                          // guards everything below
  std::vector<std::unique_ptr<Lane>> lanes_;  // by index; null until its connection has come
  StagedCheckpoint open_;                     // the open epoch, and what has come of it
  unsigned lanes_ended_ = 0;
  bool silent_ = false;  // failed and reported, or closing
};

}  // namespace colo
