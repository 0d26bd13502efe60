#include "gate_port.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "error.h"

namespace colo {
namespace {

constexpr const char* kHeldClosed = "QEMU closed the socket that brings the guest's frames";
constexpr const char* kReleaseClosed = "QEMU closed the socket that takes the guest's frames back";
constexpr const char* kMalformed = "QEMU sent a malformed frame";

std::size_t queued_bytes(int fd, unsigned long request) {
  int bytes = 0;
  COLO_ASSERT(::ioctl(fd, request, &bytes) == 0);
  return static_cast<std::size_t>(bytes);
}

template <typename Call>
ssize_t retry(const Call& call) {
  ssize_t result;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  return result;
}

}  // namespace

GatePort::GatePort(UniqueFd held, UniqueFd release, ChunkPool& pool)
    : held_(std::move(held)), release_(std::move(release)), buffer_(pool) {}

std::size_t GatePort::read(std::uint64_t bytes_max) {
  COLO_ASSERT(readable_ && bytes_max > 0);
  std::array<std::byte, 16 * 1024> scrap;
  std::span<std::byte> room = dropping_ ? std::span<std::byte>(scrap) : buffer_.room();
  if (keep_again_) bytes_max = std::min<std::uint64_t>(bytes_max, in_.missing());
  room = room.first(std::min<std::uint64_t>(room.size(), bytes_max));
  const ssize_t got = retry([&] { return ::recv(held_.get(), room.data(), room.size(), 0); });
  if (got < 0 && errno == EAGAIN) return 0;
  if (got <= 0) {
    break_reading(kHeldClosed);
    return 0;
  }
  const auto bytes = static_cast<std::size_t>(got);
  const std::uint64_t frames_before = in_.frames();
  if (!in_.feed(room.first(bytes))) {
    dropped_frames_ += in_.frames() - frames_before;  // whole ones before it, which go with it
    break_reading(kMalformed);
    return 0;
  }
  if (dropping_) {
    dropped_frames_ += in_.frames() - frames_before;
    if (keep_again_) keep_again();
  } else {
    buffer_.append(bytes);
    received_ += bytes;
    boundary_ = received_ - in_.into_frame();
  }
  return bytes;
}

std::size_t GatePort::write() {
  COLO_ASSERT(wants_out());
  std::array<iovec, 16> pieces;
  msghdr message{};
  message.msg_iov = pieces.data();
  message.msg_iovlen = buffer_.gather(may_leave_ - written_, pieces);
  const ssize_t sent = retry([&] { return ::sendmsg(release_.get(), &message, MSG_NOSIGNAL); });
  if (sent < 0 && errno == EAGAIN) return 0;
  if (sent < 0) {
    hang_up();
    return 0;
  }
  const auto bytes = static_cast<std::size_t>(sent);
  for (std::size_t i = 0, left = bytes; left > 0; ++i) {
    const std::size_t piece = std::min(left, pieces[i].iov_len);
    COLO_ASSERT(out_.feed({static_cast<const std::byte*>(pieces[i].iov_base), piece}));
    left -= piece;
  }
  buffer_.consume(bytes);
  written_ += bytes;
  COLO_ASSERT(written_ <= may_leave_);  // INVARIANT 1
  return bytes;
}

void GatePort::hang_up() {
  if (!writable_) return;
  drop_everything();
  broken_reason_ = kReleaseClosed;
}

void GatePort::drop() {
  if (!dropping_) forget_partial_frame();
  dropping_ = true;
  keep_again_ = false;
}

void GatePort::keep_again() {
  keep_again_ = dropping_ && in_.into_frame() > 0;
  dropping_ = keep_again_;
}

void GatePort::release(std::uint64_t epoch) {
  while (!seals_.empty() && seals_.front().epoch <= epoch) {
    may_leave_ = seals_.front().end;
    seals_.pop_front();
  }
}

void GatePort::release_all() {
  seals_.clear();
  may_leave_ = boundary_;
}

void GatePort::close() {
  drop_everything();
  held_.reset();
  release_.reset();
}

bool GatePort::unread() const { return queued_bytes(held_.get(), SIOCINQ) > 0; }

bool GatePort::passed_through() const {
  return written_ == received_ && queued_bytes(release_.get(), SIOCOUTQ) == 0;
}

void GatePort::forget_partial_frame() {
  buffer_.truncate(received_ - boundary_);
  received_ = boundary_;
}

void GatePort::drop_everything() {
  readable_ = writable_ = false;
  dropped_frames_ += buffered_frames();
  buffer_.truncate(buffer_.size());
  received_ = boundary_ = may_leave_ = written_;
  seals_.clear();
}

void GatePort::break_reading(const char* reason) {
  readable_ = false;
  forget_partial_frame();
  broken_reason_ = reason;
}

}  // namespace colo
