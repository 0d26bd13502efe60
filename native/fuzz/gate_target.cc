// A gate's port between two sockets: what QEMU sends, in pieces of any size, under any order of seals and
// releases.
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <optional>

#include "../core/byte_order.h"
#include "../core/descriptors.h"
#include "../core/error.h"
#include "../core/gate_port.h"
#include "naive_decoders.h"
#include "targets.h"

namespace colo::fuzz {
namespace {

// The port, and what lies on both sides of it.
class Wire {
 public:
  explicit Wire(Input stream) : stream_(stream) {
    auto [qemu_out, held] = stream_socket_pair();
    auto [qemu_in, release] = stream_socket_pair();
    qemu_out_ = std::move(qemu_out);
    qemu_in_ = std::move(qemu_in);
    port_.emplace(std::move(held), std::move(release), pool_);
  }

  // The input's first byte is the number of the orders that follow it; the rest is QEMU's stream. An order's
  // three low bits say what, the others how much.
  void obey(std::byte order) {
    const auto value = static_cast<unsigned>(order);
    switch (value & 7) {
      case 0:
        return send(value / 8 * 7 + 1);
      case 1:
        return read(value / 8 * 9 + 1);
      case 2:
        return port_->seal(++sealed_);
      case 3:
        return release(sealed_ > value / 8 ? sealed_ - value / 8 : 0);
      case 4:
        return write();
      case 5:
        dropped_ = true;
        return port_->drop();
      case 6:
        return port_->keep_again();
      default:
        return read(kChunkBytes);
    }
  }

  // All that is left goes through.
  void finish() {
    if (port_->dropping()) port_->keep_again();
    for (;;) {
      if (sent_ < stream_.size()) send(4096);
      const std::uint64_t buffered_before = port_->buffered_bytes();
      read(kChunkBytes);
      port_->release_all();
      write();
      if (sent_ == stream_.size() && buffered_before == port_->buffered_bytes() && !waiting_) return;
    }
  }

  void check() const {
    // Whole frames, as QEMU sent them.
    Bytes whole;
    for (Input rest = stream_; rest.size() >= kGuestFrameHeaderBytes;) {
      const auto length = load_big_endian<std::uint32_t>(rest.data());
      const auto vnet_bytes = load_big_endian<std::uint32_t>(rest.data() + 4);
      if (length > kFrameBytesMax || vnet_bytes > length || length > rest.size() - kGuestFrameHeaderBytes)
        break;
      const Input frame = rest.first(kGuestFrameHeaderBytes + length);
      whole.insert(whole.end(), frame.begin(), frame.end());
      rest = rest.subspan(frame.size());
    }
    if (!dropped_) {
      COLO_ASSERT(back_.size() <= whole.size() && std::equal(back_.begin(), back_.end(), whole.begin()));
      // A malformed frame takes with it what came in the same read.
      if (port_->readable()) COLO_ASSERT(back_.size() == whole.size());
    }
    COLO_ASSERT(port_->released_bytes() == back_.size());
    if (!port_->readable()) COLO_ASSERT(port_->buffered_bytes() == 0 && port_->buffered_frames() == 0);
  }

  bool intact() const { return port_->readable() && port_->released_frames() > 0; }

 private:
  void send(std::size_t bytes_max) {
    const Input piece = stream_.subspan(sent_, std::min(bytes_max, stream_.size() - sent_));
    const ssize_t sent = ::send(qemu_out_.get(), piece.data(), piece.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent <= 0) return;
    sent_ += static_cast<std::size_t>(sent);
    waiting_ = true;
  }
  void read(std::uint64_t bytes_max) { waiting_ = port_->readable() && port_->read(bytes_max) > 0; }
  void release(std::uint64_t epoch) {
    port_->release(epoch);
    // INVARIANT 1, from outside: what may leave was sealed.
    write();
  }
  void write() {
    while (port_->wants_out() && port_->write() > 0) {
      std::array<std::byte, 65536> bytes;
      for (ssize_t got; (got = ::recv(qemu_in_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT)) > 0;)
        back_.insert(back_.end(), bytes.begin(), bytes.begin() + got);
    }
  }

  Input stream_;
  std::size_t sent_ = 0;
  bool waiting_ = false;  // something was sent and not read yet
  bool dropped_ = false;
  std::uint64_t sealed_ = 0;
  Bytes back_;
  ChunkPool pool_{2};
  UniqueFd qemu_out_, qemu_in_;
  std::optional<GatePort> port_;
};

}  // namespace

Verdict gate_port(Input input) {
  const std::size_t orders = input.empty() ? 0 : static_cast<std::size_t>(input[0]);
  if (input.size() < 1 + orders) return Verdict::refused;
  Wire wire(input.subspan(1 + orders));
  for (const std::byte order : input.subspan(1, orders)) wire.obey(order);
  wire.finish();
  wire.check();
  return wire.intact() ? Verdict::accepted : Verdict::refused;
}

}  // namespace colo::fuzz
