#include "vmstate_mailbox.h"

#include <sys/uio.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "error.h"

namespace colo {
namespace {

// QEMU, migration/savevm.h: QEMU_VM_FILE_MAGIC and QEMU_VM_FILE_VERSION, both be32, then sections, each begun
// by its type.
constexpr char kStreamHeader[] = "QEVM\0\0\0\3";
constexpr std::size_t kStreamHeaderBytes = 8;
constexpr char kSectionConfiguration = 0x07;
// QEMU_VM_VMDESCRIPTION and be32 0: an empty description, which the loader would otherwise miss aloud.
constexpr char kEmptyDescription[] = "\6\0\0\0\0";
constexpr std::size_t kEmptyDescriptionBytes = 5;
constexpr std::size_t kMachineBytesMax = 255;

std::string configuration_section(const std::string& machine) {
  const auto length = static_cast<char>(static_cast<unsigned char>(machine.size()));
  return std::string{kSectionConfiguration, 0, 0, 0, length} + machine;
}

iovec piece_of(const void* at, std::size_t length) { return {const_cast<void*>(at), length}; }

}  // namespace

VmstateMailbox::VmstateMailbox(int fd, std::uint64_t state_offset, std::uint64_t state_bytes,
                               std::string machine)
    : fd_(fd),
      state_offset_(state_offset),
      state_bytes_(state_bytes),
      configuration_(configuration_section(machine)) {
  if (machine.empty() || machine.size() > kMachineBytesMax) {
    throw Error("ERR_COLO_ARGUMENT", 0,
                "machine name must have 1 to " + std::to_string(kMachineBytesMax) + " bytes");
  }
}

std::uint64_t VmstateMailbox::vmstate_bytes_max() const {
  const std::size_t added = configuration_.size() + kEmptyDescriptionBytes;
  return state_bytes_ > added ? state_bytes_ - added : 0;
}

void VmstateMailbox::check(std::span<const std::byte> vmstate) const {
  if (vmstate.size() > vmstate_bytes_max()) {
    throw Error("ERR_COLO_VMSTATE", 0,
                "device state of " + std::to_string(vmstate.size()) + " bytes: the mailbox takes " +
                    std::to_string(vmstate_bytes_max()));
  }
  if (vmstate.size() <= kStreamHeaderBytes ||
      std::memcmp(vmstate.data(), kStreamHeader, kStreamHeaderBytes) != 0) {
    throw Error("ERR_COLO_VMSTATE", 0, "device state is not a QEMU stream of version 3");
  }
}

void VmstateMailbox::write(std::span<const std::byte> vmstate) const {
  COLO_ASSERT(vmstate.size() > kStreamHeaderBytes && vmstate.size() <= vmstate_bytes_max());
  std::array<iovec, 4> pieces = {
      piece_of(vmstate.data(), kStreamHeaderBytes), piece_of(configuration_.data(), configuration_.size()),
      piece_of(vmstate.data() + kStreamHeaderBytes, vmstate.size() - kStreamHeaderBytes),
      piece_of(kEmptyDescription, kEmptyDescriptionBytes)};
  auto offset = static_cast<off_t>(state_offset_);
  for (std::size_t first = 0; first < pieces.size();) {
    const ssize_t written =
        ::pwritev(fd_, pieces.data() + first, static_cast<int>(pieces.size() - first), offset);
    if (written < 0) {
      if (errno == EINTR) continue;
      throw_errno("ERR_COLO_MAILBOX", "writing device state into the mailbox");
    }
    offset += written;
    auto rest = static_cast<std::size_t>(written);
    for (; first < pieces.size() && rest >= pieces[first].iov_len; ++first) rest -= pieces[first].iov_len;
    if (rest > 0) {
      pieces[first].iov_base = static_cast<char*>(pieces[first].iov_base) + rest;
      pieces[first].iov_len -= rest;
    }
  }
}

}  // namespace colo
