// A standby's whole bulk path behind a socket: frames, entries, hashes, device state, END, and the commit.
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "../core/checkpoint_stream.h"
#include "../core/descriptors.h"
#include "../core/error.h"
#include "../core/standby_engine.h"
#include "naive_decoders.h"
#include "targets.h"

namespace colo::fuzz {
namespace {

constexpr std::uint64_t kGeneration = 7;
const std::string kToken = "0123456789abcdef";
constexpr std::uint64_t kBlockPages = 4;
constexpr std::uint64_t kDiskSizes[] = {kDiskBlockBytes + 512, 4096};
constexpr std::uint64_t kStateOffset = 4096, kStateBytes = 8192, kMailboxBytes = 16384;
constexpr std::size_t kInputBytesMax = 128u << 10;

int file_of(std::uint64_t bytes) {
  const int fd = ::memfd_create("fuzz", MFD_CLOEXEC);
  COLO_ASSERT(fd >= 0 && ::ftruncate(fd, static_cast<off_t>(bytes)) == 0);
  return fd;
}

Bytes content_of(int fd, std::uint64_t bytes) {
  Bytes content(bytes);
  COLO_ASSERT(::pread(fd, content.data(), bytes, 0) == static_cast<ssize_t>(bytes));
  return content;
}

// What a standby is at one moment, as read or as it should be.
struct Standby {
  std::array<Bytes, 2> ram, disks;

  bool operator==(const Standby&) const = default;
};

// The engine around memory of this very process and files in memory, used for one input after the other.
class World {
 public:
  World() {
    for (std::byte*& block : ram_) {
      void* const at = ::mmap(nullptr, kBlockPages * kPageSize, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      COLO_ASSERT(at != MAP_FAILED);
      block = static_cast<std::byte*>(at);
    }
    StandbyOptions options;
    options.pid = ::getpid();
    for (std::byte* block : ram_)
      options.blocks.push_back({"ram", reinterpret_cast<std::uint64_t>(block), kBlockPages * kPageSize});
    options.mailbox_fd = mailbox_;
    options.mailbox_state_offset = kStateOffset;
    options.mailbox_state_bytes = kStateBytes;
    options.machine = "pc-q35-7.2";
    options.staging_limit_bytes = 4 * kInputBytesMax;
    for (std::size_t i = 0; i < disks_.size(); ++i)
      options.disks.push_back({"disk" + std::to_string(i), disks_[i], kDiskSizes[i]});
    engine.emplace(options,
                   StandbyEngine::Events{[this](StagedCheckpoint staged) { tell(staged.epoch, false); },
                                         [this](const Error&) { tell(0, true); }});
  }

  // As at the beginning, with a session of one connection.
  UniqueFd begin() {
    engine->close_session();
    staged_.reset();
    failed_ = false;
    for (std::byte* block : ram_) std::fill_n(block, kBlockPages * kPageSize, std::byte{0x55});
    for (std::size_t i = 0; i < disks_.size(); ++i) {
      const Bytes content(kDiskSizes[i], std::byte{0x55});
      COLO_ASSERT(::pwrite(disks_[i], content.data(), content.size(), 0) ==
                  static_cast<ssize_t>(content.size()));
    }
    engine->open_session(kToken, kGeneration, 1);
    auto [ours, theirs] = stream_socket_pair();
    const auto preface = encode_preface({kToken, kGeneration, 0, 1});
    engine->add_connection(Connection(std::move(theirs)),
                           {reinterpret_cast<const char*>(preface.data()), preface.size()});
    return std::move(ours);
  }

  // The epoch that has been staged, or nothing when the session has failed.
  std::optional<std::uint64_t> wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return staged_.has_value() || failed_; });
    return std::exchange(staged_, std::nullopt);
  }
  bool failed() {
    const std::lock_guard lock(mutex_);
    return failed_;
  }

  void commit(std::uint64_t epoch) {
    bool done = false;
    engine->commit(epoch, [&](const Error* error, CommitResult) {
      COLO_ASSERT(error == nullptr);
      const std::lock_guard lock(mutex_);
      done = true;
      changed_.notify_one();
    });
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return done; });
  }

  Standby now() const {
    Standby standby;
    for (std::size_t i = 0; i < 2; ++i) {
      standby.ram[i].assign(ram_[i], ram_[i] + kBlockPages * kPageSize);
      standby.disks[i] = content_of(disks_[i], kDiskSizes[i]);
    }
    return standby;
  }
  Bytes mailbox() const { return content_of(mailbox_, kMailboxBytes); }

  std::optional<StandbyEngine> engine;

 private:
  void tell(std::uint64_t epoch, bool failed) {
    const std::lock_guard lock(mutex_);
    if (failed) {
      failed_ = true;
    } else {
      staged_ = epoch;
    }
    changed_.notify_one();
  }

  std::array<std::byte*, 2> ram_ = {};
  const std::array<int, 2> disks_ = {file_of(kDiskSizes[0]), file_of(kDiskSizes[1])};
  const int mailbox_ = file_of(kMailboxBytes);
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<std::uint64_t> staged_;
  bool failed_ = false;
};

// One epoch's frames up to END, or what is left when no END can be found; and what they do when committed.
struct Part {
  Bytes bytes;
  bool ends = false;
  std::vector<std::pair<FrameType, Bytes>> payloads;
};

// Cuts an input where a receiver finds the ENDs. No mutation would hit a checksum, so an END whose reserved
// bytes are zero is given the numbers that are right.
class Cutter {
 public:
  explicit Cutter(Input input) : rest_(input) {}

  bool at_end() const { return rest_.empty(); }

  Part next() {
    Part part;
    EpochDigest digest;
    while (std::optional<FrameHeader> header = header_of()) {
      const Input head = rest_.first(kFrameHeaderBytes);
      const Input payload = rest_.subspan(kFrameHeaderBytes, header->length);
      part.bytes.insert(part.bytes.end(), head.begin(), head.end());
      rest_ = rest_.subspan(kFrameHeaderBytes + header->length);
      if (header->type == FrameType::end) {
        add_end(part, payload, digest.summary());
        return part;
      }
      part.bytes.insert(part.bytes.end(), payload.begin(), payload.end());
      count(*header, payload, digest);
      part.payloads.emplace_back(header->type, Bytes(payload.begin(), payload.end()));
    }
    part.bytes.insert(part.bytes.end(), rest_.begin(), rest_.end());
    rest_ = {};
    return part;
  }

 private:
  // Nothing where no whole, well-formed frame begins.
  std::optional<FrameHeader> header_of() const {
    if (rest_.size() < kFrameHeaderBytes) return {};
    try {
      const FrameHeader header = parse_frame_header(rest_.first<kFrameHeaderBytes>());
      if (header.length <= rest_.size() - kFrameHeaderBytes) return header;
    } catch (const Error&) {
    }
    return {};
  }

  static void count(const FrameHeader& header, Input payload, EpochDigest& digest) {
    if (header.type == FrameType::disk_hashes || header.type == FrameType::disk_differs) return;
    digest.add_payload(payload);
    if (header.type != FrameType::pages) return;
    try {
      const std::uint64_t blocks[] = {kBlockPages, kBlockPages};
      digest.add_pages(validate_entries(payload, blocks, header.epoch != 0));
    } catch (const Error&) {  // the receiver will see it, too
    }
  }

  static void add_end(Part& part, Input payload, const EpochSummary& right) {
    const auto end = encode_end(right);
    const bool kept = std::ranges::any_of(payload.subspan(24), [](std::byte b) { return b != std::byte{0}; });
    const Input chosen = kept ? payload : Input(end);
    part.bytes.insert(part.bytes.end(), chosen.begin(), chosen.end());
    part.ends = true;
  }

  Input rest_;
};

void send(int fd, const Bytes& bytes) {
  std::size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t piece = ::send(fd, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (piece < 0 && errno == EAGAIN) continue;
    if (piece < 0) return;  // the receiver has had enough
    sent += static_cast<std::size_t>(piece);
  }
}

void apply(const Part& part, Standby& standby) {
  for (const auto& [type, payload] : part.payloads) {
    if (type == FrameType::pages) apply_pages_naively(payload, standby.ram);
    if (type == FrameType::disk) apply_disk_writes_naively(payload, standby.disks);
  }
}

}  // namespace

// The bytes of one connection, epoch after epoch.
Verdict bulk_receiver(Input input) {
  static World world;
  if (input.size() > kInputBytesMax) return Verdict::refused;
  const UniqueFd primary = world.begin();
  Standby expected = world.now();
  std::uint64_t committed = 0;
  for (Cutter cutter(input); !world.failed() && !cutter.at_end();) {
    const Part part = cutter.next();
    const Bytes mailbox_before = world.mailbox();
    send(primary.get(), part.bytes);
    if (!part.ends) break;
    const std::optional<std::uint64_t> staged = world.wait();
    if (!staged) break;
    if (*staged != 0) {
      // INVARIANT 2: until it is committed, an epoch is seen nowhere.
      COLO_ASSERT(world.now() == expected && world.mailbox() == mailbox_before);
      world.commit(*staged);
      ++committed;
    }
    apply(part, expected);
    COLO_ASSERT(world.now() == expected);
    world.engine->open_epoch(*staged + 1);
  }
  (void)::shutdown(primary.get(), SHUT_WR);
  while (!world.failed()) (void)world.wait();
  // Of the first copy, a part may have been applied.
  world.engine->close_session();
  if (committed > 0) COLO_ASSERT(world.now() == expected);
  return committed > 0 ? Verdict::accepted : Verdict::refused;
}

}  // namespace colo::fuzz
