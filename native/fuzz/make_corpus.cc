// Writes the corpus's seeds, made by this project's own encoders: `make_corpus native/fuzz/corpus`, after a
// change of a format. What fuzzing finds is added beside them by hand.
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

#include "../core/checkpoint_stream.h"
#include "../core/heartbeat_frame.h"
#include "../core/nbd_protocol.h"
#include "naive_decoders.h"

namespace colo::fuzz {
namespace {

constexpr std::uint64_t kGeneration = 7;
constexpr char kToken[] = "0123456789abcdef";

Bytes operator+(Bytes a, std::span<const std::byte> b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}
Bytes operator+(Bytes a, const std::string& b) { return std::move(a) + std::as_bytes(std::span(b)); }
Bytes byte(unsigned value) { return {std::byte(value)}; }

class Recorder : public SocketCalls {
 public:
  ssize_t sendmsg(int, const msghdr* message, int) override {
    const std::size_t before = bytes.size();
    for (std::size_t i = 0; i < message->msg_iovlen; ++i)
      bytes = std::move(bytes) + std::span(static_cast<const std::byte*>(message->msg_iov[i].iov_base),
                                           message->msg_iov[i].iov_len);
    return static_cast<ssize_t>(bytes.size() - before);
  }

  Bytes bytes;
};

std::filesystem::path folder;
void seed(const std::string& target, const std::string& name, const Bytes& bytes) {
  std::filesystem::create_directories(folder / target);
  std::ofstream file(folder / target / name, std::ios::binary);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  if (!file.flush()) throw Error("ERR_COLO_FILE", errno, "can't write " + (folder / target / name).string());
}

// --- what a primary sends ---

const Bytes kPage(kPageSize, std::byte{0x5a});
const std::string kVmstate =
    std::string("QEVM\0\0\0\3", 8) + "\4 a section \x7e footer" + std::string(1, '\0');

// Frames as they come, cut out of what a StreamWriter sends.
Bytes first_copy(bool with_hashes) {
  Recorder recorder;
  StreamWriter writer(recorder, -1, kGeneration);
  writer.begin_epoch(0);
  writer.entries().add_zero(0, 1);
  writer.entries().add_raw(1, 3, kPage.data());
  if (with_hashes) {
    const BlockHash hashes[] = {hash_of_block(Bytes(kDiskBlockBytes, std::byte{0x55})), BlockHash{}};
    writer.send_disk_hashes(0, 0, hashes);
    writer.add_disk_write(0, {kDiskBlockBytes, 512, kPage.data()});
  }
  writer.end_epoch(2);
  return recorder.bytes;
}

Bytes epoch(std::uint64_t number) {
  Recorder recorder;
  StreamWriter writer(recorder, -1, kGeneration);
  writer.begin_epoch(number);
  writer.add_disk_write(0, {100, 3, kPage.data()});
  writer.add_disk_write(1, {0, 4096, nullptr});
  writer.send_gathered();
  writer.entries().add_zero(0, 2);
  writer.entries().add_delta(1, 1, kPage.data(), 0x8000000000000005);
  writer.entries().add_raw(0, 3, kPage.data());
  writer.send_gathered();
  writer.send_vmstate(std::as_bytes(std::span(kVmstate)));
  writer.end_epoch(3);
  return recorder.bytes;
}

void seed_stream() {
  const auto preface = encode_preface({kToken, kGeneration, 1, 2});
  seed("bulk_preface", "two-connections", Bytes() + preface);
  std::string control = "COLOCTL1" + std::string(56, '\0');
  seed("acceptor", "control", byte(63) + control + "what follows");
  seed("acceptor", "bulk-in-pieces", byte(6) + preface + "what follows");
  seed("acceptor", "heartbeat", byte(40) + encode_heartbeat_preface(kToken, kGeneration) + "what follows");
  seed("acceptor", "cut-off", byte(9) + control.substr(0, 40));

  seed("bulk_receiver", "first-copy", first_copy(false));
  seed("bulk_receiver", "first-copy-with-disks", first_copy(true));
  seed("bulk_receiver", "two-checkpoints", first_copy(true) + epoch(1) + epoch(2));
  seed("vmstate_mailbox", "vmstate", Bytes() + kVmstate);

  EntryWriter entries(1u << 16, 16);
  for (unsigned page = 0; page < 3; ++page) entries.add_zero(0, page);
  entries.add_delta(0, 4, kPage.data(), 0xff00000000000001);
  for (unsigned page = 8; page < 10; ++page) entries.add_raw(0, page, kPage.data());
  entries.add_raw(1, 0, kPage.data());
  Bytes pages;
  for (const iovec& piece : entries.pieces())
    pages = std::move(pages) + std::span(static_cast<const std::byte*>(piece.iov_base), piece.iov_len);
  seed("page_entries", "all-kinds", byte(1) + pages);
}

void seed_disks() {
  DiskEntryWriter writes(kDiskEntryBytesMax + 4096, 16);
  writes.add(0, {12, 5, kPage.data()});
  writes.add(1, {kDiskBlockBytes, kDiskBlockBytes, nullptr});
  writes.add(0, {8 * kDiskBlockBytes, 512, kPage.data()});
  Bytes payload;
  for (const iovec& piece : writes.pieces())
    payload = std::move(payload) + std::span(static_cast<const std::byte*>(piece.iov_base), piece.iov_len);
  seed("disk_payloads", "writes", byte(0) + payload);

  const DiskHashesHeader header = {0, 0, 2, 7};
  const BlockHash hashes[2] = {};
  seed("disk_payloads", "hashes",
       byte(1) + std::as_bytes(std::span(&header, 1)) + std::as_bytes(std::span(hashes)));

  const Bytes differs = {std::byte{5}, std::byte{0}, std::byte{0}, std::byte{0},
                         std::byte{0}, std::byte{0}, std::byte{0}, std::byte{0}};
  seed("disk_differs", "three-blocks",
       byte(2) + byte(0) + encode_frame_header({FrameType::disk_differs, kGeneration, 0, 8}) + differs);
}

// --- NBD ---

nbd::Message option(std::uint32_t number, std::span<const std::byte> data) {
  nbd::Message message;
  message.put(nbd::kOptionMagic).put(number).put(static_cast<std::uint32_t>(data.size())).put(data);
  return message;
}

Bytes request(std::uint16_t command, std::uint64_t offset, std::uint32_t length, std::uint16_t flags = 0) {
  const auto message = nbd::Message()
                           .put(nbd::kRequestMagic)
                           .put(flags)
                           .put(command)
                           .put(std::uint64_t{1})
                           .put(offset)
                           .put(length);
  return Bytes() + message.bytes();
}

void seed_nbd_server() {
  const auto no_name = nbd::Message().put(std::uint32_t{0}).put(std::uint16_t{1}).put(nbd::kInfoBlockSize);
  const auto flags = nbd::Message().put(std::uint32_t{nbd::kFixedNewstyle | nbd::kNoZeroes});
  const Bytes hello = Bytes() + flags.bytes();
  const Bytes go = hello + option(nbd::kOptionGo, no_name.bytes()).bytes();
  seed("nbd_server", "options",
       hello + option(nbd::kOptionList, {}).bytes() + option(nbd::kOptionStructuredReply, {}).bytes() +
           option(nbd::kOptionInfo, no_name.bytes()).bytes() + option(nbd::kOptionAbort, {}).bytes());
  seed("nbd_server", "requests",
       go + request(nbd::kWrite, 4096, 512, nbd::kCommandFua) + std::span(kPage).first(512) +
           request(nbd::kWriteZeroes, 65536, 65536, nbd::kCommandNoHole) + request(nbd::kTrim, 0, 4096) +
           request(nbd::kFlush, 0, 0) + request(nbd::kRead, 0, 512) + request(nbd::kWrite, 1u << 30, 16) +
           std::span(kPage).first(16) + request(nbd::kDisconnect, 0, 0));
}

Bytes option_reply(std::uint32_t to, std::uint32_t type, std::span<const std::byte> data = {}) {
  const auto message = nbd::Message()
                           .put(nbd::kOptionReplyMagic)
                           .put(to)
                           .put(type)
                           .put(static_cast<std::uint32_t>(data.size()))
                           .put(data);
  return Bytes() + message.bytes();
}

Bytes chunk(std::uint16_t flags, std::uint16_t type, std::uint64_t handle, std::span<const std::byte> data) {
  const auto message = nbd::Message()
                           .put(nbd::kStructuredReplyMagic)
                           .put(flags)
                           .put(type)
                           .put(handle)
                           .put(static_cast<std::uint32_t>(data.size()))
                           .put(data);
  return Bytes() + message.bytes();
}

// What a server says until it has accepted GO.
Bytes served(std::uint64_t disk_bytes) {
  const auto size = nbd::Message().put(nbd::kInfoExport).put(disk_bytes).put(nbd::kHasFlags);
  const auto blocks = nbd::Message()
                          .put(nbd::kInfoBlockSize)
                          .put(std::uint32_t{1})
                          .put(std::uint32_t{4096})
                          .put(std::uint32_t{1u << 25});
  return option_reply(nbd::kOptionGo, nbd::kReplyInfo, size.bytes()) +
         option_reply(nbd::kOptionGo, nbd::kReplyInfo, blocks.bytes()) +
         option_reply(nbd::kOptionGo, nbd::kReplyAck);
}

// The fuzzer's client asks for the first 64 KiB in its request 1 and for what is behind them in request 2.
void seed_nbd_client() {
  const auto greeting = nbd::Message()
                            .put(nbd::kMagic)
                            .put(nbd::kOptionMagic)
                            .put(static_cast<std::uint16_t>(nbd::kFixedNewstyle | nbd::kNoZeroes));
  const Bytes hello = Bytes() + greeting.bytes();
  const Bytes structured =
      hello + option_reply(nbd::kOptionStructuredReply, nbd::kReplyAck) + served(kDiskBlockBytes + 512);
  const auto hole =
      nbd::Message().put(std::uint64_t{4096}).put(static_cast<std::uint32_t>(kDiskBlockBytes - 4096));
  const auto head = nbd::Message().put(std::uint64_t{0}).put(std::span(kPage));
  const auto tail = nbd::Message().put(kDiskBlockBytes).put(std::span(kPage).first(512));
  seed("nbd_client", "structured",
       structured + chunk(0, nbd::kChunkOffsetData, 1, head.bytes()) +
           chunk(nbd::kChunkDone, nbd::kChunkOffsetData, 2, tail.bytes()) +
           chunk(nbd::kChunkDone, nbd::kChunkOffsetHole, 1, hole.bytes()));
  const auto error =
      nbd::Message().put(nbd::kErrorInvalid).put(std::uint16_t{4}).put(std::span(kPage).first(4));
  seed("nbd_client", "error", structured + chunk(nbd::kChunkDone, nbd::kChunkErrorBit | 1, 1, error.bytes()));
  const auto simple = nbd::Message().put(nbd::kSimpleReplyMagic).put(std::uint32_t{0}).put(std::uint64_t{1});
  seed("nbd_client", "simple",
       hello + option_reply(nbd::kOptionStructuredReply, nbd::kReplyErrorUnsupported) + served(512) +
           simple.bytes() + std::span(kPage).first(512));
}

// --- what QEMU and the kernel write ---

void seed_qemu() {
  Bytes frames;
  for (const std::uint32_t length : {60u, 12u, 1514u, 60u}) {
    const auto header = nbd::Message().put(length).put(std::uint32_t{12});
    frames = std::move(frames) + header.bytes() + Bytes(length, std::byte{0x42});
  }
  // Send, read, seal, release, read all, write.
  const std::string orders = "\x78\x71\x02\x60\x07\x02\x03\x07\x04";
  seed("gate_port", "sealed-and-released", byte(orders.size()) + orders + frames);
  const std::string dropping = "\x78\x09\x05\x60\x07\x06\x68\x07";
  seed("gate_port", "dropped-and-kept-again", byte(dropping.size()) + dropping + frames);

  seed("process_maps", "two-mappings",
       Bytes() +
           std::string("7f12a0000000-7f12a0200000 rw-s 00001000 00:01 1234      /memfd:ram (deleted)\n"
                       "Size:               2048 kB\nKernelPageSize:     2048 kB\n"
                       "VmFlags: rd wr sh mr mw me ms\n"
                       "7f12a0200000-7f12a0201000 ---p 00000000 00:00 0 \nKernelPageSize:        4 kB\n"));
  seed("process_stat", "running",
       Bytes() +
           std::string("7 (qemu (x) y) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 4 0 900 4096 5 6 7 8 9 10 "
                       "11 256 0 0 0 0 0 0 17 1\n"));
}

}  // namespace
}  // namespace colo::fuzz

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: make_corpus FOLDER\n";
    return 64;
  }
  using namespace colo::fuzz;
  folder = argv[1];
  seed_stream();
  seed_disks();
  seed_nbd_server();
  seed_nbd_client();
  seed_qemu();
}
