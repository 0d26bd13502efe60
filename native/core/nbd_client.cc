#include "nbd_client.h"

#include <fcntl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "error.h"
#include "socket_io.h"

namespace colo {
namespace {

constexpr std::size_t kInFlightMax = 8;
constexpr std::uint32_t kRequestBytesAimed = 1u << 20;
constexpr std::uint32_t kOptionReplyBytesMax = 8192;
constexpr std::uint32_t kErrorTextBytesMax = 4096;
constexpr unsigned kOptionRepliesMax = 64;

}  // namespace

NbdClient::NbdClient(UniqueFd socket, std::string export_name)
    : socket_(std::move(socket)), export_name_(std::move(export_name)) {
  // Whatever waits does so in CuttableCalls::poll().
  const int flags = ::fcntl(socket_.get(), F_GETFL);
  if (flags < 0 || ::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK) < 0)
    throw_errno("ERR_COLO_SOCKET", "can't make the socket of a disk's source non-blocking");
}

void NbdClient::cut() { calls_.cut(); }

void NbdClient::fail(const std::string& what) const {
  throw Error("ERR_COLO_DISK", 0, "reading from the NBD export '" + export_name_ + "': " + what);
}

// --- bytes in and out
// --------------------------------------------------------------------------------------------------------------

void NbdClient::send(std::span<const std::byte> bytes) {
  iovec piece = {const_cast<std::byte*>(bytes.data()), bytes.size()};
  try {
    send_all(calls_, socket_.get(), {&piece, 1}, "the connection to it");
  } catch (const Error& error) {
    fail(error.what());
  }
}

void NbdClient::receive(std::span<std::byte> into) {
  try {
    receive_all(calls_, socket_.get(), into, "the connection to it");
  } catch (const Error& error) {
    fail(error.what());
  }
}

template <class T>
T NbdClient::receive_integer() {
  std::array<std::byte, sizeof(T)> bytes;
  receive(bytes);
  return load_big_endian<T>(bytes.data());
}

// --- negotiation
// -------------------------------------------------------------------------------------------------------------------

void NbdClient::send_option(std::uint32_t option, std::span<const std::byte> data) {
  send(nbd::Message()
           .put(nbd::kOptionMagic)
           .put(option)
           .put(static_cast<std::uint32_t>(data.size()))
           .put(data)
           .bytes());
}

std::uint32_t NbdClient::receive_option_reply(std::uint32_t option, std::vector<std::byte>& data) {
  if (receive_integer<std::uint64_t>() != nbd::kOptionReplyMagic) fail("wrong magic in its option reply");
  if (receive_integer<std::uint32_t>() != option) fail("it answers an option that wasn't sent");
  const auto type = receive_integer<std::uint32_t>();
  const auto length = receive_integer<std::uint32_t>();
  if (length > kOptionReplyBytesMax) fail("its option reply has " + std::to_string(length) + " bytes");
  data.resize(length);
  receive(data);
  return type;
}

void NbdClient::negotiate() {
  if (receive_integer<std::uint64_t>() != nbd::kMagic) fail("it isn't an NBD server");
  if (receive_integer<std::uint64_t>() != nbd::kOptionMagic) fail("it doesn't speak newstyle");
  const auto flags = receive_integer<std::uint16_t>();
  if ((flags & nbd::kFixedNewstyle) == 0) fail("it doesn't speak fixed newstyle");
  send(nbd::Message().put(std::uint32_t{nbd::kFixedNewstyle} | (flags & nbd::kNoZeroes)).bytes());
  std::vector<std::byte> data;
  send_option(nbd::kOptionStructuredReply, {});
  structured_ = receive_option_reply(nbd::kOptionStructuredReply, data) == nbd::kReplyAck;
  // The name, and one request for information: the block size.
  const auto wanted = nbd::Message()
                          .put(static_cast<std::uint32_t>(export_name_.size()))
                          .put(std::as_bytes(std::span(export_name_)))
                          .put(std::uint16_t{1})
                          .put(nbd::kInfoBlockSize);
  send_option(nbd::kOptionGo, wanted.bytes());
  request_bytes_max_ = kRequestBytesAimed;
  for (unsigned replies = 0; replies < kOptionRepliesMax; ++replies) {
    const std::uint32_t type = receive_option_reply(nbd::kOptionGo, data);
    if (type == nbd::kReplyAck) {
      if (size_bytes_ == 0) fail("it doesn't say how large it is, or is empty");
      broken_ = false;
      return;
    }
    if (type == nbd::kReplyInfo) {
      take_info(data);
    } else {
      const std::string text(reinterpret_cast<const char*>(data.data()), data.size());
      fail("it is refused (reply " + std::to_string(type & ~nbd::kReplyErrorBit) + ")" +
           (text.empty() ? "" : ": " + text));
    }
  }
  fail("it goes on answering GO");
}

void NbdClient::take_info(std::span<const std::byte> data) {
  if (data.size() < 2) fail("a piece of information is cut off");
  const auto type = load_big_endian<std::uint16_t>(data.data());
  if (type == nbd::kInfoExport) {
    if (data.size() != 12) fail("the information about its size has a wrong length");
    size_bytes_ = load_big_endian<std::uint64_t>(data.data() + 2);
  } else if (type == nbd::kInfoBlockSize) {
    if (data.size() != 14) fail("the information about its block size has a wrong length");
    const auto minimum = load_big_endian<std::uint32_t>(data.data() + 2);
    const auto maximum = load_big_endian<std::uint32_t>(data.data() + 10);
    // What is read here begins and ends at multiples of 64 KiB, or at its end.
    if (minimum == 0 || minimum > 65536 || (minimum & (minimum - 1)) != 0 || maximum < 65536)
      fail("impossible block sizes");
    request_bytes_max_ = std::min(kRequestBytesAimed, maximum / 65536 * 65536);
  }
}

// --- reading
// -----------------------------------------------------------------------------------------------------------------------

void NbdClient::read(std::span<const NbdRead> reads, const Hole& hole) {
  if (broken_) fail("the connection to it has failed before, or has not been negotiated");
  broken_ = true;
  COLO_ASSERT(in_flight_.empty());
  std::vector<NbdRead> left(reads.begin(), reads.end());
  std::reverse(left.begin(), left.end());
  std::erase_if(left, [](const NbdRead& read) { return read.into.empty(); });
  while (!left.empty() || !in_flight_.empty()) {
    while (!left.empty() && in_flight_.size() < kInFlightMax) request_next(left);
    receive_reply(hole);
  }
  broken_ = false;
}

void NbdClient::request_next(std::vector<NbdRead>& left) {
  NbdRead& next = left.back();
  COLO_ASSERT(next.offset <= size_bytes_ && next.into.size() <= size_bytes_ - next.offset);
  const auto length = static_cast<std::uint32_t>(std::min<std::size_t>(next.into.size(), request_bytes_max_));
  in_flight_.push_back({{next.offset, next.into.first(length)}, next_handle_, 0});
  send(nbd::Message()
           .put(nbd::kRequestMagic)
           .put(std::uint16_t{0})
           .put(static_cast<std::uint16_t>(nbd::kRead))
           .put(next_handle_++)
           .put(next.offset)
           .put(length)
           .bytes());
  next = {next.offset + length, next.into.subspan(length)};
  if (next.into.empty()) left.pop_back();
}

NbdClient::Request& NbdClient::request_of(std::uint64_t handle) {
  const auto found = std::find_if(in_flight_.begin(), in_flight_.end(),
                                  [handle](const Request& request) { return request.handle == handle; });
  if (found == in_flight_.end()) fail("it answers a request that isn't open");
  return *found;
}

void NbdClient::complete(const Request& request) {
  if (request.done_bytes != request.read.into.size()) fail("it ends an answer before all has come");
  in_flight_.erase(in_flight_.begin() + (&request - in_flight_.data()));
}

void NbdClient::receive_reply(const Hole& hole) {
  const auto magic = receive_integer<std::uint32_t>();
  if (magic == nbd::kStructuredReplyMagic && structured_) {
    receive_chunk(hole);
  } else if (magic == nbd::kSimpleReplyMagic && !structured_) {
    receive_simple_reply();
  } else {
    fail("wrong magic in its reply");
  }
}

void NbdClient::receive_simple_reply() {
  const auto error = receive_integer<std::uint32_t>();
  Request& request = request_of(receive_integer<std::uint64_t>());
  if (error != 0) fail(std::string("it answers with the error ") + std::strerror(static_cast<int>(error)));
  receive(request.read.into);
  request.done_bytes = request.read.into.size();
  complete(request);
}

void NbdClient::receive_chunk(const Hole& hole) {
  std::array<std::byte, nbd::kChunkHeaderBytes - 4> header;
  receive(header);
  const auto flags = load_big_endian<std::uint16_t>(header.data());
  const auto type = load_big_endian<std::uint16_t>(header.data() + 2);
  Request& request = request_of(load_big_endian<std::uint64_t>(header.data() + 4));
  const auto length = load_big_endian<std::uint32_t>(header.data() + 12);
  if ((type & nbd::kChunkErrorBit) != 0) receive_error(length);
  if (type != nbd::kChunkNone) {
    receive_content(request, type, length, hole);
  } else if (length != 0 || (flags & nbd::kChunkDone) == 0) {
    fail("an empty chunk that isn't the last, or isn't empty");
  }
  if ((flags & nbd::kChunkDone) != 0) complete(request);
}

// The protocol lets a server send the chunks of an answer in any order. QEMU sends them in that of the disk,
// as nbdkit does, and "each byte exactly once" is then seen by comparing two numbers.
void NbdClient::receive_content(Request& request, std::uint16_t type, std::uint32_t length,
                                const Hole& hole) {
  const bool data = type == nbd::kChunkOffsetData;
  if (!data && type != nbd::kChunkOffsetHole) fail("a chunk of an unknown type");
  if (data ? length <= 8 : length != 12) fail("a chunk of a wrong length");
  const auto offset = receive_integer<std::uint64_t>();
  const std::uint64_t bytes = data ? length - 8 : receive_integer<std::uint32_t>();
  if (offset != request.read.offset + request.done_bytes) fail("the chunks of its answer are out of order");
  if (bytes == 0 || bytes > request.read.into.size() - request.done_bytes)
    fail("a chunk that is empty, or reaches beyond what was asked for");
  const std::span<std::byte> into = request.read.into.subspan(request.done_bytes, bytes);
  if (data) {
    receive(into);
  } else {
    hole(offset, into);
  }
  request.done_bytes += bytes;
}

// u32 error, u16 length of the text, the text; some errors have an offset behind that.
void NbdClient::receive_error(std::uint32_t length) {
  if (length < 6 || length > kErrorTextBytesMax + 14) fail("an error of a wrong length");
  const auto error = receive_integer<std::uint32_t>();
  std::string text(receive_integer<std::uint16_t>(), '\0');
  if (text.size() > length - 6) fail("an error of a wrong length");
  receive(std::as_writable_bytes(std::span(text)));
  fail(std::string("it answers with the error ") + std::strerror(static_cast<int>(error)) +
       (text.empty() ? "" : ": " + text));
}

}  // namespace colo
