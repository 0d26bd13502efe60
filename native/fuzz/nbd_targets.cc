// Both ends of NBD that this agent has: the export that QEMU's mirror job writes to, and the client that
// reads the disk from QEMU.
#include <sys/socket.h>

#include <algorithm>
#include <vector>

#include "../core/descriptors.h"
#include "../core/disk_log.h"
#include "../core/error.h"
#include "../core/nbd_client.h"
#include "../core/nbd_connection.h"
#include "naive_decoders.h"
#include "targets.h"

namespace colo::fuzz {
namespace {

constexpr std::uint64_t kDiskBytes = 4 * kDiskBlockBytes + 512;

// A socket in which all of the input lies already, and its end. What the sockets' buffers don't take is left
// out: nobody reads yet, and nobody reads at all what is answered.
UniqueFd socket_with(Input input, UniqueFd& other_end) {
  auto [ours, theirs] = stream_socket_pair();
  (void)!::send(theirs.get(), input.data(), input.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  COLO_ASSERT(::shutdown(theirs.get(), SHUT_WR) == 0);
  other_end = std::move(theirs);
  return std::move(ours);
}

// A log whose next writes belong to epoch 1.
void begin_epoch(DiskLog& log) {
  log.begin_session(true);
  while (log.next_differing(64).count > 0) {
  }
  (void)log.take_first_copy_writes();
}

}  // namespace

Verdict nbd_server(Input input) {
  DiskLogOptions options;
  options.id = "disk0";
  options.size_bytes = kDiskBytes;
  options.stall_ms = 1;
  DiskLog log(options, {[] {}, [](const std::string&) {}});
  begin_epoch(log);
  Verdict verdict = Verdict::refused;
  try {
    UniqueFd other_end;
    NbdConnection connection(socket_with(input, other_end), log);
    bool in_transmission = false;
    connection.serve([&] { in_transmission = true; });
    if (in_transmission) verdict = Verdict::accepted;
  } catch (const Error&) {
  }
  // Whatever came: what is logged can be sent.
  log.seal(1);
  const auto logged = log.take_sealed(1);
  for (const DiskWrite& write : logged->entries()) {
    COLO_ASSERT(write.length > 0 && write.offset < kDiskBytes && write.length <= kDiskBytes - write.offset);
    if (write.data != nullptr) {
      const Bytes readable(write.data, write.data + write.length);
      COLO_ASSERT(readable.size() == write.length);
    }
  }
  return verdict;
}

// The whole disk is read, at most 192 KiB of it, in two reads of which a server may answer the second first.
Verdict nbd_client(Input input) {
  UniqueFd other_end;
  NbdClient client(socket_with(input, other_end), "disk0");
  Bytes disk(3 * kDiskBlockBytes);
  try {
    client.negotiate();
    const auto whole = std::span(disk).first(std::min<std::uint64_t>(disk.size(), client.size_bytes()));
    const std::size_t half = std::min<std::size_t>(whole.size(), kDiskBlockBytes);
    const NbdRead reads[] = {{0, whole.first(half)}, {half, whole.subspan(half)}};
    client.read(reads, [&](std::uint64_t offset, std::span<std::byte> into) {
      COLO_ASSERT(into.data() == disk.data() + offset && into.size() <= whole.size() - offset);
      std::fill(into.begin(), into.end(), std::byte{0});
    });
    return Verdict::accepted;
  } catch (const Error&) {
    return Verdict::refused;
  }
}

}  // namespace colo::fuzz
