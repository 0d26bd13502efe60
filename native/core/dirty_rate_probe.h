// Watches what a guest that nobody protects writes to its RAM, to forecast what protection would cost.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "error.h"
#include "guest_memory.h"
#include "page_delta.h"

namespace colo {

struct DirtyRateOptions {
  pid_t pid = 0;
  std::vector<RamBlock> blocks;
  unsigned threads = 1;              // that scan
  std::uint64_t sample_one_in = 16;  // of this many pages, one is copied and encoded
};

// What a checkpoint at the end of one window would have had to do.
struct DirtyRateRound {
  std::uint64_t window_us = 0;  // from the collection before to this one
  std::uint64_t dirty_pages = 0;
  std::uint64_t scan_us = 0;
  // Of the dirty pages, those in the sample: what they would be on the wire, and what it took to copy and to
  // encode them, in one thread.
  std::uint64_t sampled_pages = 0, sampled_bytes = 0;
  PageCounts sampled;
  std::uint64_t copy_us = 0, encode_us = 0;
};

// Never stops the guest, and sends nothing to anybody. One job at a time (asserted) runs on the probe's own
// thread and calls `done` there. close() may come at any time from any thread; the job in progress fails with
// ERR_COLO_CLOSED. However the probe ends, QEMU is left as it was: see make_userfaultfd_tracker().
class DirtyRateProbe {
 public:
  using Done = std::function<void(const Error*)>;
  using RoundDone = std::function<void(const Error*, DirtyRateRound)>;

  // Attaches. Throws what GuestMemory and make_userfaultfd_tracker() throw; QEMU is unharmed then.
  explicit DirtyRateProbe(const DirtyRateOptions& options);
  ~DirtyRateProbe();

  // Begins the first window. Reads the sample.
  void begin(Done done);

  // Lets the window become `interval_us` long, looks, and begins the next one. ERR_COLO_ARGUMENT before
  // begin() has done well.
  void watch(std::uint64_t interval_us, RoundDone done);

  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace colo
