#include "bulk_receiver.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <utility>

#include "laps.h"

namespace colo {
namespace {

// What a frame of epoch 0 may have as payload, whatever its type.
constexpr std::size_t kFirstCopyBytesMax = std::max({kPagesBytesMax, kDiskBytesMax, kDiskHashesBytesMax});

[[noreturn]] void refuse_frame(const Error& why, unsigned lane) {
  throw Error(why.code(), why.sys_errno(), "bulk connection " + std::to_string(lane) + ": " + why.what());
}

// In a time that doesn't depend on where they differ.
bool equal_secrets(const std::string& a, const std::string& b) {
  if (a.size() != b.size()) return false;
  unsigned difference = 0;
  for (std::size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned char>(a[i] ^ b[i]);
  return difference == 0;
}

std::vector<std::uint64_t> lengths_of_blocks(const GuestMemory& memory) {
  std::vector<std::uint64_t> pages;
  for (std::size_t i = 0; i < memory.block_count(); ++i) pages.push_back(memory.block(i).pages());
  return pages;
}

Error stream_error(const std::string& what) { return {"ERR_COLO_STREAM", 0, what}; }

}  // namespace

BulkReceiver::BulkReceiver(Destination destination, const StandbyEngine::Events& events, std::string token,
                           std::uint64_t generation, unsigned connections)
    : destination_(std::move(destination)),
      events_(events),
      token_(std::move(token)),
      generation_(generation),
      block_pages_(lengths_of_blocks(destination_.memory)),
      lanes_(connections) {}

BulkReceiver::~BulkReceiver() {
  {
    const std::lock_guard lock(mutex_);
    silent_ = true;
    for (const auto& lane : lanes_) {
      if (lane) ::shutdown(lane->connection.fd.get(), SHUT_RDWR);
    }
  }
  for (const auto& lane : lanes_) {
    if (lane) lane->thread.join();
  }
}

void BulkReceiver::add_connection(Connection connection, const BulkPreface& preface) {
  const auto refuse = [](const char* what) {
    throw Error("ERR_COLO_PEER", 0, std::string("bulk connection refused: ") + what);
  };
  if (!equal_secrets(preface.token, token_)) refuse("wrong token");
  if (preface.generation != generation_) refuse("wrong generation");
  const std::lock_guard lock(mutex_);
  if (preface.connections != lanes_.size()) refuse("wrong number of connections");
  if (lanes_[preface.index]) refuse("its index has been taken");
  auto lane = std::make_unique<Lane>(destination_.memory);
  lane->index = preface.index;
  lane->connection = std::move(connection);
  if (silent_)
    ::shutdown(lane->connection.fd.get(), SHUT_RDWR);  // the session has failed on another connection
  lane->thread = std::thread([this, served = lane.get()] { serve(*served); });
  lanes_[preface.index] = std::move(lane);
}

void BulkReceiver::open_epoch(std::uint64_t epoch) {
  const std::lock_guard lock(mutex_);
  COLO_ASSERT(lanes_ended_ == lanes_.size() && epoch == open_.epoch + 1);
  destination_.cache.open(epoch, static_cast<unsigned>(lanes_.size()));
  open_ = {.epoch = epoch};
  lanes_ended_ = 0;
}

void BulkReceiver::serve(Lane& lane) {
  try {
    for (;;) receive_frame(lane);
  } catch (const Error& error) {
    fail(error);
  } catch (const std::bad_alloc&) {
    fail(Error("ERR_COLO_MEMORY", ENOMEM, "no memory left to stage a checkpoint"));
  }
}

void BulkReceiver::fail(const Error& error) {
  {
    const std::lock_guard lock(mutex_);
    if (std::exchange(silent_, true)) return;
    for (const auto& lane : lanes_) {
      if (lane) ::shutdown(lane->connection.fd.get(), SHUT_RDWR);
    }
  }
  events_.failed(error);
}

void BulkReceiver::receive_frame(Lane& lane) {
  try {
    const FrameHeader header =
        receive_frame_header(lane.connection.calls(), lane.connection.fd.get(), generation_);
    enter_epoch(lane, header.epoch);
    lane.wire_bytes += kFrameHeaderBytes + header.length;
    switch (header.type) {
      case FrameType::pages:
        return receive_pages(lane, header.length);
      case FrameType::vmstate:
        return receive_vmstate(lane, header.length);
      case FrameType::end:
        return receive_end(lane);
      case FrameType::disk:
        return receive_disk_writes(lane, header.length);
      case FrameType::disk_hashes:
        return answer_disk_hashes(lane, header.length);
      case FrameType::disk_differs:
        throw stream_error("DISK_DIFFERS is the secondary's to send");
      case FrameType::scrub:
        return receive_scrub(lane, header.length);
    }
  } catch (const Error& error) {
    refuse_frame(error, lane.index);
  }
}

void BulkReceiver::receive(Lane& lane, std::span<std::byte> into) {
  receive_all(lane.connection.calls(), lane.connection.fd.get(), into);
}

void BulkReceiver::enter_epoch(Lane& lane, std::uint64_t epoch) {
  {
    const std::lock_guard lock(mutex_);
    if (epoch != open_.epoch) {
      throw stream_error("frame of epoch " + std::to_string(epoch) + " while " + std::to_string(open_.epoch) +
                         " is open");
    }
    if (open_.began_us == 0) open_.began_us = monotonic_us();
  }
  if (lane.epoch != epoch) {
    // The epoch before is complete, or this one would not be open.
    COLO_ASSERT(lane.ended);
    lane.epoch = epoch;
    lane.wire_bytes = lane.vmstate_bytes = lane.disk_bytes = lane.scrub_pages = 0;
    lane.ended = false;
    lane.digest.reset();
    lane.first_copy.reset();
  }
  if (lane.ended) throw stream_error("frame after the END of epoch " + std::to_string(epoch));
}

// INVARIANT 2: what isn't of the first copy goes to where nobody sees it before it is committed.
std::span<std::byte> BulkReceiver::receive_payload(Lane& lane, std::size_t length) {
  std::span<std::byte> payload;
  if (lane.epoch != 0) {
    payload = destination_.cache.reserve(lane.index, length);
  } else {
    if (!lane.first_copy) lane.first_copy = std::make_unique_for_overwrite<std::byte[]>(kFirstCopyBytesMax);
    payload = {lane.first_copy.get(), length};
  }
  receive(lane, payload);
  return payload;
}

void BulkReceiver::receive_pages(Lane& lane, std::size_t length) {
  const bool first_copy = lane.epoch == 0;
  const std::span<std::byte> payload = receive_payload(lane, length);
  lane.digest.add_payload(payload);
  const std::uint64_t pages = validate_entries(payload, block_pages_, !first_copy);
  lane.digest.add_pages(pages);
  count_pages(pages);
  if (first_copy) {
    destination_.wait_until_flushed();
    lane.applier.apply_first_copy(payload);
  } else {
    destination_.cache.add_pages(lane.index, payload);  // INVARIANT 2: guest RAM isn't touched before commit
  }
}

void BulkReceiver::receive_disk_writes(Lane& lane, std::size_t length) {
  if (lane.index != 0) throw stream_error("disk writes belong on connection 0");
  const std::span<std::byte> payload = receive_payload(lane, length);
  lane.digest.add_payload(payload);
  lane.disk_bytes += length;
  validate_disk_entries(payload, destination_.disks.sizes());
  if (lane.epoch == 0) {
    destination_.wait_until_flushed();
    destination_.disks.apply(payload);
  } else {
    destination_.disks.reserve(payload);  // INVARIANT 2: want of space shows before RECEIVED, not in a commit
    destination_.cache.add_disk_writes(payload);
  }
}

void BulkReceiver::answer_disk_hashes(Lane& lane, std::size_t length) {
  if (lane.index != 0) throw stream_error("DISK_HASHES belongs on connection 0");
  // Later, what the disks hold is behind what has been sent: the answer would be about an older epoch.
  if (lane.epoch != 0) throw stream_error("DISK_HASHES in epoch " + std::to_string(lane.epoch));
  const std::span<std::byte> payload = receive_payload(lane, length);
  destination_.wait_until_flushed();
  std::vector<std::byte> differs = destination_.disks.compare(payload);
  auto header = encode_frame_header(
      {FrameType::disk_differs, generation_, 0, static_cast<std::uint32_t>(differs.size())});
  std::array<iovec, 2> pieces = {iovec{header.data(), header.size()}, {differs.data(), differs.size()}};
  send_all(lane.connection.calls(), lane.connection.fd.get(), pieces);
}

// Without this, sixteen bytes could ask for the clearing of a whole block, again and again.
void BulkReceiver::count_pages(std::uint64_t pages) {
  const std::lock_guard lock(mutex_);
  if (pages > destination_.memory.total_bytes() / kPageSize - open_.pages) {
    throw stream_error("epoch " + std::to_string(open_.epoch) + " has more pages than the guest");
  }
  open_.pages += pages;
}

void BulkReceiver::receive_vmstate(Lane& lane, std::size_t length) {
  if (lane.epoch == 0) throw stream_error("device state in epoch 0");
  if (lane.index != 0) throw stream_error("device state belongs on connection 0");
  if (lane.vmstate_bytes != 0)
    throw stream_error("device state twice in epoch " + std::to_string(lane.epoch));
  if (length > destination_.mailbox.vmstate_bytes_max()) {
    throw stream_error("device state of " + std::to_string(length) + " bytes doesn't fit in the mailbox");
  }
  const std::span<std::byte> payload = receive_payload(lane, length);
  lane.digest.add_payload(payload);
  destination_.mailbox.check(payload);
  destination_.cache.set_vmstate(payload);
  lane.vmstate_bytes = length;
}

void BulkReceiver::receive_scrub(Lane& lane, std::size_t length) {
  if (lane.epoch == 0) throw stream_error("SCRUB in epoch 0");
  if (lane.index != 0) throw stream_error("SCRUB belongs on connection 0");
  const std::span<std::byte> payload = receive_payload(lane, length);
  lane.digest.add_payload(payload);
  const std::uint64_t pages = validate_scrub(payload, block_pages_).count;
  // Without this, a small frame could have a whole block hashed, again and again.
  if (pages > destination_.memory.total_bytes() / kPageSize - lane.scrub_pages)
    throw stream_error("epoch " + std::to_string(lane.epoch) + " scrubs more pages than the guest has");
  lane.scrub_pages += pages;
  destination_.cache.add_scrub(payload);
}

void BulkReceiver::receive_end(Lane& lane) {
  std::array<std::byte, kEndBytes> bytes;
  receive(lane, bytes);
  const EpochSummary announced = parse_end(bytes), counted = lane.digest.summary();
  if (announced.pages != counted.pages || announced.payload_bytes != counted.payload_bytes) {
    throw stream_error("epoch " + std::to_string(lane.epoch) +
                       " is incomplete: END announces other numbers than have come");
  }
  if (announced.hash != counted.hash)
    throw stream_error("checksum of epoch " + std::to_string(lane.epoch) + " is wrong");
  if (lane.epoch != 0 && lane.index == 0 && lane.vmstate_bytes == 0) {
    throw stream_error("epoch " + std::to_string(lane.epoch) + " ends without device state");
  }
  lane.ended = true;
  StagedCheckpoint staged;
  {
    const std::lock_guard lock(mutex_);
    open_.wire_bytes += lane.wire_bytes;
    open_.vmstate_bytes += lane.vmstate_bytes;
    open_.disk_bytes += lane.disk_bytes;
    if (++lanes_ended_ < lanes_.size() || silent_) return;
    open_.received_us = monotonic_us() - open_.began_us;
    staged = open_;
  }
  if (staged.epoch != 0) destination_.cache.complete();
  events_.staged(staged);
}

}  // namespace colo
