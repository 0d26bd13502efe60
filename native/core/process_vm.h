// Copies between another process's memory and ours, many pieces a system call.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <array>
#include <cstddef>
#include <cstdint>

namespace colo {

// process_vm_readv or process_vm_writev (process_vm_readv(2)); tests pass one that transfers less than it was
// asked to.
using ProcessVmCall = ssize_t (*)(pid_t, const iovec*, unsigned long, const iovec*, unsigned long,
                                  unsigned long);

// Collects pieces and transfers them IOV_MAX at a time, in order. A transfer that ends early (an unmapped
// page, more than 2 GiB) goes on where it ended; one that makes no progress throws ERR_COLO_GUEST_MEMORY, and
// some pieces may have been transferred then.
class ProcessVmBatch {
 public:
  ProcessVmBatch(ProcessVmCall call, pid_t pid) : call_(call), pid_(pid) {}

  void add(std::uint64_t remote_address, const std::byte* local, std::size_t length);

  // Transfers what is still waiting; nothing is transferred by destruction.
  void finish();

 private:
  static constexpr std::size_t kPiecesMax = 1024;  // IOV_MAX, which the kernel checks (UIO_MAXIOV)

  void skip(std::size_t length);

  ProcessVmCall call_;
  pid_t pid_;
  std::size_t first_ = 0, end_ = 0;  // the pieces still to be transferred
  std::array<iovec, kPiecesMax> local_;
  std::array<iovec, kPiecesMax> remote_;
};

}  // namespace colo
