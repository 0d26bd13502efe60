#include "nbd_connection.h"

#include <fcntl.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "error.h"

namespace colo {
namespace {

constexpr const char* kName = "an NBD client's connection";
constexpr std::size_t kInputBytes = 32u << 10;   // what a longer write has beyond it is received in its place
constexpr std::uint32_t kOptionBytesMax = 8192;  // a name has at most 4096
constexpr unsigned kOptionsMax = 64;
constexpr std::uint16_t kTransmissionFlags = nbd::kHasFlags | nbd::kSendFlush | nbd::kSendFua |
                                             nbd::kSendTrim | nbd::kSendWriteZeroes | nbd::kCanMultiConn;
constexpr std::uint32_t kBlockBytesMin = 1, kBlockBytesPreferred = 4096;

[[noreturn]] void break_off(const std::string& what) {
  throw Error("ERR_COLO_NBD", 0, "the NBD client broke the protocol: " + what);
}

}  // namespace

NbdConnection::NbdConnection(UniqueFd socket, DiskLog& log)
    : socket_(std::move(socket)),
      log_(log),
      input_(std::make_unique_for_overwrite<std::byte[]>(kInputBytes)) {
  // Blocking: it has a thread of its own, and poll(2) would be one more system call in each guest write.
  const int flags = ::fcntl(socket_.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket_.get(), F_SETFL, flags & ~O_NONBLOCK) < 0)
    throw_errno("ERR_COLO_SOCKET", "can't make an NBD client's socket blocking");
}

void NbdConnection::cut() { ::shutdown(socket_.get(), SHUT_RDWR); }

// --- bytes in and out
// --------------------------------------------------------------------------------------------------------------

void NbdConnection::send_replies() {
  if (replies_.empty()) return;
  iovec piece = {replies_.data(), replies_.size()};
  send_all(system_socket_calls(), socket_.get(), {&piece, 1}, kName);
  replies_.clear();
}

// False: the client has closed the connection where it may, before the first of these bytes.
bool NbdConnection::receive_or_end(std::span<std::byte> into) {
  if (input_begin_ == input_end_) {
    send_replies();
    input_begin_ = 0;
    input_end_ = receive_some(system_socket_calls(), socket_.get(), {input_.get(), kInputBytes}, kName);
    if (input_end_ == 0) return false;
  }
  receive(into);
  return true;
}

void NbdConnection::receive(std::span<std::byte> into) {
  if (into.empty()) return;
  const std::size_t ready = std::min(into.size(), input_end_ - input_begin_);
  std::memcpy(into.data(), input_.get() + input_begin_, ready);
  input_begin_ += ready;
  into = into.subspan(ready);
  if (into.empty()) return;
  send_replies();
  receive_all(system_socket_calls(), socket_.get(), into, kName);
}

void NbdConnection::skip(std::uint64_t length) {
  std::array<std::byte, 4096> bytes;
  while (length > 0) {
    const std::size_t piece = std::min<std::uint64_t>(length, bytes.size());
    receive({bytes.data(), piece});
    length -= piece;
  }
}

// --- negotiation
// -------------------------------------------------------------------------------------------------------------------

bool NbdConnection::negotiate() {
  const auto greeting = nbd::Message()
                            .put(nbd::kMagic)
                            .put(nbd::kOptionMagic)
                            .put(static_cast<std::uint16_t>(nbd::kFixedNewstyle | nbd::kNoZeroes));
  replies_.assign(greeting.bytes().begin(), greeting.bytes().end());
  std::array<std::byte, 4> flags;
  if (!receive_or_end(flags)) return false;
  const auto client_flags = load_big_endian<std::uint32_t>(flags.data());
  if ((client_flags & nbd::kFixedNewstyle) == 0) break_off("it doesn't speak fixed newstyle");
  if ((client_flags & ~std::uint32_t{nbd::kFixedNewstyle | nbd::kNoZeroes}) != 0)
    break_off("unknown handshake flags");
  for (unsigned options = 0; options < kOptionsMax; ++options) {
    std::array<std::byte, 16> header;
    if (!receive_or_end(header)) return false;
    if (load_big_endian<std::uint64_t>(header.data()) != nbd::kOptionMagic) break_off("wrong option magic");
    const auto option = load_big_endian<std::uint32_t>(header.data() + 8);
    const auto length = load_big_endian<std::uint32_t>(header.data() + 12);
    if (length > kOptionBytesMax) break_off("an option of " + std::to_string(length) + " bytes");
    std::vector<std::byte> data(length);
    receive(data);
    // This one has no reply that could refuse it.
    if (option == nbd::kOptionExportName) break_off("it asks by EXPORT_NAME; GO is spoken here");
    const bool transmission = answer_option(option, data);
    if (option == nbd::kOptionAbort) {
      send_replies();
      return false;
    }
    if (transmission) return true;
  }
  break_off("more than " + std::to_string(kOptionsMax) + " options");
}

// Whether transmission follows.
bool NbdConnection::answer_option(std::uint32_t option, std::span<const std::byte> data) {
  switch (option) {
    case nbd::kOptionAbort:
      reply_option(option, nbd::kReplyAck);
      return false;
    case nbd::kOptionList:
      if (data.empty()) {
        reply_option(option, nbd::kReplyServer, nbd::Message().put(std::uint32_t{0}).bytes());
        reply_option(option, nbd::kReplyAck);
      } else {
        reply_option(option, nbd::kReplyErrorInvalid);
      }
      return false;
    case nbd::kOptionInfo:
    case nbd::kOptionGo:
      return answer_info(option, data) && option == nbd::kOptionGo;
    default:
      reply_option(option, nbd::kReplyErrorUnsupported);
      return false;
  }
}

// The data: u32 length of the name, the name, u16 number of requests for information, each u16. Both pieces
// that there are go to everybody, asked for or not.
bool NbdConnection::answer_info(std::uint32_t option, std::span<const std::byte> data) {
  const auto refuse = [&](nbd::OptionReply error) {
    reply_option(option, error);
    return false;
  };
  if (data.size() < 6) return refuse(nbd::kReplyErrorInvalid);
  const auto name_bytes = load_big_endian<std::uint32_t>(data.data());
  if (name_bytes > data.size() - 6) return refuse(nbd::kReplyErrorInvalid);
  const auto requests = load_big_endian<std::uint16_t>(data.data() + 4 + name_bytes);
  if (data.size() != 6 + name_bytes + requests * std::size_t{2}) return refuse(nbd::kReplyErrorInvalid);
  if (name_bytes != 0) return refuse(nbd::kReplyErrorUnknown);
  reply_option(option, nbd::kReplyInfo,
               nbd::Message().put(nbd::kInfoExport).put(log_.size_bytes()).put(kTransmissionFlags).bytes());
  reply_option(option, nbd::kReplyInfo,
               nbd::Message()
                   .put(nbd::kInfoBlockSize)
                   .put(kBlockBytesMin)
                   .put(kBlockBytesPreferred)
                   .put(static_cast<std::uint32_t>(kWriteBytesMax))
                   .bytes());
  reply_option(option, nbd::kReplyAck);
  return true;
}

void NbdConnection::reply_option(std::uint32_t option, std::uint32_t type, std::span<const std::byte> data) {
  const auto header = nbd::Message()
                          .put(nbd::kOptionReplyMagic)
                          .put(option)
                          .put(type)
                          .put(static_cast<std::uint32_t>(data.size()));
  replies_.insert(replies_.end(), header.bytes().begin(), header.bytes().end());
  replies_.insert(replies_.end(), data.begin(), data.end());
}

// --- transmission
// ------------------------------------------------------------------------------------------------------------------

void NbdConnection::transmit() {
  std::array<std::byte, nbd::kRequestBytes> bytes;
  while (receive_or_end(bytes)) {
    if (load_big_endian<std::uint32_t>(bytes.data()) != nbd::kRequestMagic) break_off("wrong request magic");
    const nbd::Request request = nbd::parse_request(bytes);
    if (request.command == nbd::kDisconnect) break;
    handle(request);
  }
}

void NbdConnection::handle(const nbd::Request& request) {
  const std::uint32_t error = refusal(request);
  if (request.command == nbd::kWrite) {
    // Its data follows, and must be gone through to find the next request.
    if (request.length > kWriteBytesMax) break_off("a write longer than the block size it was told");
    if (error == 0) {
      write(request);
    } else {
      skip(request.length);
    }
  } else if (error == 0 && (request.command == nbd::kTrim || request.command == nbd::kWriteZeroes)) {
    if (log_.must_wait(0)) send_replies();
    log_.append_zeros(request.offset, request.length);
  }
  reply(request.handle, error);
}

void NbdConnection::write(const nbd::Request& request) {
  if (log_.must_wait(request.length)) send_replies();
  WriteRoom room = log_.reserve(request.length);
  for (const WriteRoom::Piece& piece : room.pieces) receive(piece.bytes);
  log_.append(std::move(room), request.offset);
}

// The error that answers it; 0 when it is carried out.
std::uint32_t NbdConnection::refusal(const nbd::Request& request) const {
  switch (request.command) {
    case nbd::kFlush:
      return 0;
    case nbd::kRead:
      return nbd::kErrorNotSupported;
    case nbd::kWrite:
    case nbd::kTrim:
    case nbd::kWriteZeroes:
      break;
    default:
      return nbd::kErrorInvalid;
  }
  const unsigned allowed =
      request.command == nbd::kWriteZeroes ? nbd::kCommandFua | nbd::kCommandNoHole : nbd::kCommandFua;
  if ((request.flags & ~allowed) != 0 || request.length == 0) return nbd::kErrorInvalid;
  if (request.offset > log_.size_bytes() || request.length > log_.size_bytes() - request.offset)
    return request.command == nbd::kTrim ? nbd::kErrorInvalid : nbd::kErrorNoSpace;
  return 0;
}

void NbdConnection::reply(std::uint64_t handle, std::uint32_t error) {
  std::array<std::byte, nbd::kSimpleReplyBytes> bytes;
  store_big_endian(bytes.data(), nbd::kSimpleReplyMagic);
  store_big_endian(bytes.data() + 4, error);
  store_big_endian(bytes.data() + 8, handle);
  replies_.insert(replies_.end(), bytes.begin(), bytes.end());
}

}  // namespace colo
