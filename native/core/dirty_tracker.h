// Which pages did the guest write since the last look?
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "dirty_bitmap.h"
#include "guest_memory.h"
#include "shadow.h"
#include "worker_pool.h"

namespace colo {

enum class TrackerKind {
  userfaultfd,  // write-protection by the kernel (WP_ASYNC) and PAGEMAP_SCAN
  compare,      // the fall-back: all of RAM compared with the shadow
};

class DirtyTracker {
 public:
  virtual ~DirtyTracker() = default;

  virtual TrackerKind kind() const = 0;

  // Begins a new epoch: from now on every write by the guest is remembered.
  // INVARIANT 5: only while the VM is stopped and drained; a page pinned for I/O could otherwise be written
  // later without a fault.
  virtual void protect_all() = 0;

  // Adds every page written since protect_all() or the last collect() to `dirty` (one bitmap a block) and
  // begins the next epoch for those pages. INVARIANT 5 as above. Shared out over `pool`. Throws
  // ERR_COLO_TRACKER (or ERR_COLO_GUEST_MEMORY, by comparing); what was already cleared in the kernel is in
  // `dirty` even then (invariant 3).
  virtual void collect(std::span<DirtyBitmap> dirty, WorkerPool& pool) = 0;
};

// Injects userfaultfd into QEMU by ptrace, takes the descriptor over by pidfd_getfd, closes QEMU's copy, and
// registers every block. Destruction closes the last descriptor: the kernel then lifts every protection, so
// QEMU is left as it was, however the agent ends. Throws Error with one of: ERR_COLO_UFFD_UNSUPPORTED (kernel
// before 6.7, an architecture without the injection, or pages of 1 GiB), ERR_COLO_UFFD_BUSY (EBUSY:
// post-copy, background-snapshot or another tracker holds a range), ERR_COLO_UFFD_DENIED (ptrace or
// userfaultfd not permitted, or QEMU's main thread can't be stopped), ERR_COLO_PROCESS (QEMU is gone). QEMU
// is unharmed in every case. `memory` must outlive the tracker. A write is seen wherever it comes from: vCPU
// threads, QEMU's device models, the kernel's I/O on its behalf. Not seen: DMA by VFIO devices, writes
// through another process's mapping of a shared backend (vhost-user), and memory given back to the host (a
// balloon's fallocate or madvise): its content is undefined for the guest.
std::unique_ptr<DirtyTracker> make_userfaultfd_tracker(const GuestMemory& memory);

// Compares all of RAM with `shadow`, which must hold what was last sent. protect_all() marks everything as
// dirty for the next collect(). `memory` and `shadow` must outlive the tracker.
std::unique_ptr<DirtyTracker> make_compare_tracker(const GuestMemory& memory, const Shadow& shadow);

}  // namespace colo
