// The place from which the standby's QEMU loads device state: the VM state area of a qcow2 file's one
// internal snapshot, overwritten in place before each snapshot-load.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace colo {

class VmstateMailbox {
 public:
  // `fd` is the qcow2 file, open for writing, not owned; its VM state area is `state_bytes` long from
  // `state_offset` on and contiguous. Throws ERR_COLO_ARGUMENT for a machine name that a stream can't carry.
  VmstateMailbox(int fd, std::uint64_t state_offset, std::uint64_t state_bytes, std::string machine);

  // Is this what xen-save-devices-state writes, and will it fit? Throws ERR_COLO_VMSTATE.
  void check(std::span<const std::byte> vmstate) const;

  // The longest vmstate that fits.
  std::uint64_t vmstate_bytes_max() const;

  // Writes `vmstate`, which has passed check(), as a stream that snapshot-load takes. Throws
  // ERR_COLO_MAILBOX.
  void write(std::span<const std::byte> vmstate) const;

 private:
  int fd_;
  std::uint64_t state_offset_, state_bytes_;
  std::string configuration_;  // the section that carries the machine's name
};

}  // namespace colo
