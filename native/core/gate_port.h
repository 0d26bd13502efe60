// One NIC's way through the output gate: a socket that frames come from, what is kept of them, a socket that
// they go back to.
#pragma once

#include <cstdint>
#include <deque>
#include <utility>

#include "frame_buffer.h"
#include "unique_fd.h"

namespace colo {

// Knows nothing of limits, threads or the other ports: OutputGate drives it, under its lock.
class GatePort {
 public:
  // Both are non-blocking stream sockets. `pool` outlives the port.
  GatePort(UniqueFd held, UniqueFd release, ChunkPool& pool);

  int held_fd() const { return held_.get(); }
  int release_fd() const { return release_.get(); }
  bool readable() const { return readable_; }  // false once `held` has closed or sent a malformed frame
  bool writable() const { return writable_; }  // false once `release` has closed
  bool dropping() const { return dropping_; }
  bool wants_out() const { return writable_ && written_ < may_leave_; }
  std::uint64_t buffered_bytes() const { return buffer_.size(); }
  std::uint64_t buffered_frames() const { return in_.frames() - out_.frames() - dropped_frames_; }
  std::uint64_t released_frames() const { return out_.frames(); }
  std::uint64_t released_bytes() const { return written_; }
  std::uint64_t dropped_frames() const { return dropped_frames_; }
  // Why the port isn't readable() or writable() any more, once each; nullptr when there is nothing (new) to
  // tell.
  const char* take_broken_reason() { return std::exchange(broken_reason_, nullptr); }

  // One recv(2) of at most `bytes_max` (not 0) bytes, kept or, while dropping(), dropped. Returns their
  // number, 0 when nothing can be read now or, readable() says which, ever again.
  std::size_t read(std::uint64_t bytes_max);
  // One sendmsg(2) of bytes that may leave. Returns their number, 0 when nothing can be written now or,
  // writable() says which, ever again: then the port isn't readable() either and holds nothing.
  std::size_t write();

  // From here on incoming frames are dropped, also the one that is half here; and kept again from the next
  // frame's beginning on.
  void drop();
  void keep_again();

  void seal(std::uint64_t epoch) { seals_.push_back({epoch, boundary_}); }
  void release(std::uint64_t epoch);
  void release_all();
  // `release` was hung up, as epoll saw; nothing can leave any more.
  void hang_up();
  void close();

  // The guest has sent more than was read (SIOCINQ).
  bool unread() const;
  // Everything that came has been written and QEMU has read it (SIOCOUTQ: a unix socket's buffers are charged
  // to their sender until then).
  bool passed_through() const;

 private:
  void forget_partial_frame();
  void drop_everything();
  void break_reading(const char* reason);

  // Positions count the bytes kept since the port's beginning: written_ <= may_leave_ <= boundary_ <=
  // received_.
  UniqueFd held_, release_;
  FrameBuffer buffer_;  // the bytes from written_ to received_
  FrameScanner in_, out_;
  std::uint64_t received_ = 0;
  std::uint64_t boundary_ = 0;  // the end of the last whole frame
  // INVARIANT 1: nothing beyond this position is written. Always the end of a frame.
  std::uint64_t may_leave_ = 0;
  std::uint64_t written_ = 0;
  std::uint64_t dropped_frames_ = 0;
  struct Seal {
    std::uint64_t epoch, end;
  };
  std::deque<Seal> seals_;  // sealed epochs that are not released yet
  bool dropping_ = false, keep_again_ = false;
  bool readable_ = true, writable_ = true;
  const char* broken_reason_ = nullptr;
};

}  // namespace colo
