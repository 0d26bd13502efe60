// The output gate: holds the guest's frames until the checkpoint behind them is safe on the other side.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

namespace colo {

// A limit below this could never hold one whole frame.
inline constexpr std::uint64_t kGateLimitBytesMin = 128u << 10;

struct GateOptions {
  // Never holds more than this, over all ports.
  std::uint64_t limit_bytes = 64u << 20;
  // A checkpoint is asked for from here on; the rest is room for what comes until the VM stands.
  std::uint64_t pressure_bytes = 48u << 20;
  // At limit_bytes the gate stops reading. That holds QEMU's main loop up, which is the back-pressure, and a
  // QEMU held up so can neither carry out the `stop` of the checkpoint that would make room nor read what the
  // gate gives back. So when no byte of room has come for this long (seen with QEMU 7.2: for ever), frames
  // are dropped whole, as a NIC with a full queue does, and counted, until there is room again.
  unsigned stall_ms = 100;
};

struct GateStats {
  std::uint64_t held_frames = 0, held_bytes = 0;          // in the gate now, also what may leave and hasn't
  std::uint64_t released_frames = 0, released_bytes = 0;  // handed back to QEMU
  std::uint64_t dropped_frames = 0;  // see GateOptions::stall_ms; and what close() found held
  bool holding = false;
};

// One thread with epoll reads QEMU's frames at once (a write that QEMU can't finish blocks its main loop) and
// writes the released ones back. On the wire to and from QEMU each frame is be32 length, be32 vnet header
// length, then `length` bytes (QEMU: net/filter-mirror.c with vnet_hdr_support=on); it goes back byte for
// byte. All functions may be called from any thread but the callbacks'; callbacks come from the gate's
// thread.
class OutputGate {
 public:
  struct Events {
    std::function<void()> output_held;  // the open epoch has got its first frame since the last seal
    std::function<void()> pressure;     // pressure_bytes reached; once per seal
    std::function<void(const char* reason)> broken;  // a port's socket closed or sent a malformed frame
  };

  OutputGate(const GateOptions& options, Events events);
  ~OutputGate();  // closes; what is held is dropped: it fails closed (invariant 1)

  // A NIC: `held_fd` brings the guest's frames, `release_fd` takes them back. Both are stream sockets and are
  // taken over, also when this throws (ERR_COLO_SOCKET, ERR_COLO_CLOSED). A gate begins in pass-through.
  // Returns the port's number.
  unsigned add_port(int held_fd, int release_fd);

  // The VM is stopped: reads every port to EAGAIN (all that the guest sent before the stop is in the socket
  // by then) and marks the end of `epoch`. In pass-through what was drained goes out, and holding begins: the
  // next frame belongs to epoch + 1. Epochs grow by one while the gate holds (asserted); of a checkpoint that
  // failed and is made again, the same epoch is sealed again, and then ends there. May exceed
  // limit_bytes by nothing: if the drain would, it throws ERR_COLO_GATE_FULL and stays as it was, unsealed.
  // Throws ERR_COLO_CLOSED.
  void seal(std::uint64_t epoch);

  // OUTPUT COMMIT (invariant 1): RECEIVED(epoch) has come; everything up to the end of `epoch` (sealed,
  // asserted) leaves, in order. In pass-through and after close() there is nothing to do.
  void release(std::uint64_t epoch);

  // Hands over: everything held leaves in order and what comes passes through, sealed or not. For a primary
  // that goes on alone.
  void open();

  // Reads all ports to EAGAIN, waits until everything passed through has been read by QEMU (SIOCOUTQ is 0) or
  // `timeout_ms` is over. Only in pass-through (asserted). Returns false on time-out, after close(), or when
  // a port is broken. One caller at a time.
  bool flush(unsigned timeout_ms);

  GateStats stats() const;
  void close();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace colo
