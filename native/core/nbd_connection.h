// One NBD client of a disk's export, usually QEMU's mirror job.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "disk_log.h"
#include "nbd_protocol.h"
#include "socket_io.h"
#include "unique_fd.h"

namespace colo {

// Speaks fixed newstyle NBD with simple replies. What the client writes goes into the log and is answered at
// once: a flush and FUA have nothing to wait for, since the durable disk is the source, which QEMU has
// written before. A trim is taken as zeros, so that both disks read the same afterwards whatever a trimmed
// range reads as on either. Reads are refused (ENOTSUP): the content is the source's, to be read there; no
// mirror reads its target.
//
// Whatever a client sends, it can end nothing but its own connection.
class NbdConnection {
 public:
  NbdConnection(UniqueFd socket, DiskLog& log);

  // Serves until the client leaves, breaks the protocol (throws ERR_COLO_NBD), the socket fails
  // (ERR_COLO_LINK) or cut() is called. `in_transmission` is called when the negotiation has come to its end.
  template <class InTransmission>
  void serve(const InTransmission& in_transmission) {
    if (!negotiate()) return;
    in_transmission();
    transmit();
  }

  // From any thread: ends serve().
  void cut();

 private:
  // True: transmission follows. False: the client has left.
  bool negotiate();
  bool answer_option(std::uint32_t option, std::span<const std::byte> data);
  bool answer_info(std::uint32_t option, std::span<const std::byte> data);
  void reply_option(std::uint32_t option, std::uint32_t type, std::span<const std::byte> data = {});

  void transmit();
  void handle(const nbd::Request& request);
  std::uint32_t refusal(const nbd::Request& request) const;
  void write(const nbd::Request& request);
  void reply(std::uint64_t handle, std::uint32_t error);

  bool receive_or_end(std::span<std::byte> into);
  void receive(std::span<std::byte> into);
  void skip(std::uint64_t length);
  void send_replies();

  UniqueFd socket_;
  DiskLog& log_;
  // What was received and not yet looked at: many small requests come with one system call. Their replies
  // leave with one, too, before anything is waited for.
  std::unique_ptr<std::byte[]> input_;
  std::size_t input_begin_ = 0, input_end_ = 0;
  std::vector<std::byte> replies_;
};

}  // namespace colo
