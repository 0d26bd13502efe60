#include "process_vm.h"

#include <cerrno>

#include "error.h"

namespace colo {

void ProcessVmBatch::add(std::uint64_t remote_address, const std::byte* local, std::size_t length) {
  if (length == 0) return;
  if (end_ == kPiecesMax) finish();
  // An iovec has no const; process_vm_writev only reads from it.
  local_[end_] = {const_cast<std::byte*>(local), length};
  remote_[end_] = {reinterpret_cast<void*>(remote_address), length};
  ++end_;
}

void ProcessVmBatch::finish() {
  while (first_ < end_) {
    const std::size_t pieces = end_ - first_;
    const ssize_t done = call_(pid_, &local_[first_], pieces, &remote_[first_], pieces, 0);
    // Nothing transferred and no error: the kernel has no such case for pieces that aren't empty, and trying
    // again could go on for ever.
    if (done == 0) errno = EFAULT;
    if (done <= 0) throw_errno("ERR_COLO_GUEST_MEMORY", "memory of process " + std::to_string(pid_));
    skip(static_cast<std::size_t>(done));
  }
  first_ = end_ = 0;
}

void ProcessVmBatch::skip(std::size_t length) {
  while (length > 0 && length >= local_[first_].iov_len) {
    length -= local_[first_].iov_len;
    ++first_;
  }
  if (length == 0) return;
  for (iovec* piece : {&local_[first_], &remote_[first_]}) {
    piece->iov_base = static_cast<std::byte*>(piece->iov_base) + length;
    piece->iov_len -= length;
  }
}

}  // namespace colo
