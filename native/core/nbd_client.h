// Reads from an NBD server: QEMU's own export of the disk that the guest writes to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "cuttable_calls.h"
#include "nbd_protocol.h"
#include "unique_fd.h"

namespace colo {

// One read: `into` is filled from byte `offset` on.
struct NbdRead {
  std::uint64_t offset = 0;
  std::span<std::byte> into;
};

// Every error is ERR_COLO_DISK, names the export and says what was wrong; the client is of no use then. One
// thread at a time, but for cut().
class NbdClient {
 public:
  // `socket` is a connected stream socket.
  NbdClient(UniqueFd socket, std::string export_name);

  // Fixed newstyle, GO, with structured replies when the server has them.
  void negotiate();

  // After negotiate().
  std::uint64_t size_bytes() const { return size_bytes_; }

  // Carries out all the reads, several at a time. A part that the server knows to read as zeros isn't written
  // to: `hole` is called with it instead (by a server without structured replies never).
  using Hole = std::function<void(std::uint64_t offset, std::span<std::byte> into)>;
  void read(std::span<const NbdRead> reads, const Hole& hole);

  // From any thread: ends what is in progress and everything later with an error. The server isn't told: QEMU
  // 7.2.22 aborts when a client leaves an export that is served by an iothread (nbd_blockdev_client_closed
  // asserts that it runs in the main thread), so the export has to be deleted before the connection ends.
  void cut();

 private:
  struct Request {
    NbdRead read;
    std::uint64_t handle = 0;
    std::size_t done_bytes = 0;
  };

  void send(std::span<const std::byte> bytes);
  void receive(std::span<std::byte> into);
  template <class T>
  T receive_integer();
  [[noreturn]] void fail(const std::string& what) const;

  void send_option(std::uint32_t option, std::span<const std::byte> data);
  std::uint32_t receive_option_reply(std::uint32_t option, std::vector<std::byte>& data);
  void take_info(std::span<const std::byte> data);

  void request_next(std::vector<NbdRead>& left);
  void receive_reply(const Hole& hole);
  void receive_simple_reply();
  void receive_chunk(const Hole& hole);
  void receive_content(Request& request, std::uint16_t type, std::uint32_t length, const Hole& hole);
  [[noreturn]] void receive_error(std::uint32_t length);
  Request& request_of(std::uint64_t handle);
  void complete(const Request& request);

  UniqueFd socket_;
  CuttableCalls calls_;
  const std::string export_name_;
  std::uint64_t size_bytes_ = 0;
  std::uint32_t request_bytes_max_ = 0;
  bool structured_ = false;
  bool broken_ = true;  // until negotiate() has gone well, and after every error
  std::uint64_t next_handle_ = 1;
  std::vector<Request> in_flight_;
};

}  // namespace colo
