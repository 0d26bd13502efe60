#define XXH_INLINE_ALL
#include "../core/checkpoint_stream.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <string>

#include "../core/descriptors.h"
#include "../core/disk_stream.h"
#include "../core/error.h"
#include "test_socket_calls.h"

namespace colo {
namespace {

using Bytes = std::vector<std::byte>;
using testing::RecordingSocketCalls;

Bytes from_hex(std::string hex) {
  std::erase(hex, ' ');
  Bytes bytes;
  for (std::size_t i = 0; i < hex.size(); i += 2)
    bytes.push_back(static_cast<std::byte>(std::stoul(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

template <class Array>
Bytes as_vector(const Array& array) {
  return {array.begin(), array.end()};
}

template <class Call>
std::string refusal(const char* code, const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), code);
    return error.what();
  }
  return "";
}

std::string header_refusal(const Bytes& bytes) {
  return refusal("ERR_COLO_STREAM",
                 [&] { parse_frame_header(std::span<const std::byte, kFrameHeaderBytes>(bytes)); });
}

TEST(CheckpointStream, FrameHeaderIsAsTheProtocolSaysByteForByte) {
  const FrameHeader header = {FrameType::vmstate, 0x0102030405060708, 0x1112131415161718, 0x00212223};
  const Bytes bytes = as_vector(encode_frame_header(header));
  EXPECT_EQ(bytes, from_hex("43424c4b 0001 0002 0102030405060708 1112131415161718 00212223 00000000"));
  const FrameHeader back = parse_frame_header(std::span<const std::byte, kFrameHeaderBytes>(bytes));
  EXPECT_EQ(back.type, header.type);
  EXPECT_EQ(back.generation, header.generation);
  EXPECT_EQ(back.epoch, header.epoch);
  EXPECT_EQ(back.length, header.length);
}

TEST(CheckpointStream, FrameHeaderRefusesWhatItsFieldsDoNotAllow) {
  const auto with = [](std::size_t at, const std::string& hex, FrameType type = FrameType::pages,
                       std::uint32_t length = 16) {
    Bytes bytes = as_vector(encode_frame_header({type, 1, 1, length}));
    const Bytes changed = from_hex(hex);
    std::copy(changed.begin(), changed.end(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
    return header_refusal(bytes);
  };
  EXPECT_EQ(with(0, ""), "");
  EXPECT_NE(with(3, "4a").find("magic"), std::string::npos);
  EXPECT_NE(with(4, "0002").find("version 2"), std::string::npos);
  EXPECT_NE(with(6, "0000").find("type 0"), std::string::npos);
  EXPECT_NE(with(6, "0008").find("type 8"), std::string::npos);
  EXPECT_NE(with(6, "0101").find("type 257"), std::string::npos);
  EXPECT_NE(with(31, "01").find("reserved"), std::string::npos);
  EXPECT_EQ(with(24, "00100000"), "");
  EXPECT_NE(with(24, "00100001").find("length"), std::string::npos);
  EXPECT_NE(with(24, "00000000").find("length"), std::string::npos);
  EXPECT_EQ(with(24, "04000000", FrameType::vmstate), "");
  EXPECT_NE(with(24, "04000001", FrameType::vmstate).find("length"), std::string::npos);
  EXPECT_NE(with(24, "ffffffff", FrameType::vmstate).find("length"), std::string::npos);
  EXPECT_NE(with(24, "00000021", FrameType::end, 32).find("length"), std::string::npos);
}

TEST(CheckpointStream, LengthsOfDiskFramesAreBounded) {
  const auto allowed = [](FrameType type, std::uint32_t length) {
    Bytes bytes = as_vector(encode_frame_header({FrameType::pages, 1, 1, 16}));
    bytes[7] = static_cast<std::byte>(type);
    for (int i = 0; i < 4; ++i) bytes[27 - i] = static_cast<std::byte>(length >> 8 * i);
    return header_refusal(bytes).empty();
  };
  for (const std::uint32_t length : {24u, 1u << 20}) EXPECT_TRUE(allowed(FrameType::disk, length));
  for (const std::uint32_t length : {0u, 25u, (1u << 20) + 8, ~0u})
    EXPECT_FALSE(allowed(FrameType::disk, length));
  for (const std::uint32_t length : {32u, 65552u}) EXPECT_TRUE(allowed(FrameType::disk_hashes, length));
  for (const std::uint32_t length : {0u, 16u, 33u, 65568u})
    EXPECT_FALSE(allowed(FrameType::disk_hashes, length));
  for (const std::uint32_t length : {8u, 512u}) EXPECT_TRUE(allowed(FrameType::disk_differs, length));
  for (const std::uint32_t length : {0u, 9u, 520u}) EXPECT_FALSE(allowed(FrameType::disk_differs, length));
}

TEST(CheckpointStream, EndIsAsTheProtocolSaysByteForByte) {
  const EpochSummary summary = {1, 2, 0x0102030405060708};
  Bytes bytes = as_vector(encode_end(summary));
  EXPECT_EQ(bytes, from_hex("0000000000000001 0000000000000002 0102030405060708 0000000000000000"));
  EXPECT_EQ(parse_end(std::span<const std::byte, kEndBytes>(bytes)), summary);
  bytes[31] = std::byte{1};
  EXPECT_NE(refusal("ERR_COLO_STREAM", [&] { parse_end(std::span<const std::byte, kEndBytes>(bytes)); }), "");
}

TEST(CheckpointStream, PrefaceIsAsTheProtocolSaysByteForByte) {
  const std::string token = "0123456789abcdef";
  const Bytes bytes = as_vector(encode_preface({token, 7, 1, 3}));
  Bytes expected = from_hex("434f4c4f424c4b31 30313233343536373839616263646566 0000000000000007 0001 0003");
  expected.resize(64);
  EXPECT_EQ(bytes, expected);
  const BulkPreface back = parse_preface(bytes);
  EXPECT_EQ(back.token, token);
  EXPECT_EQ(back.generation, 7u);
  EXPECT_EQ(back.index, 1u);
  EXPECT_EQ(back.connections, 3u);
  for (std::size_t at = 0; at < 64; ++at) {
    Bytes bad = bytes;
    bad[at] ^= std::byte{0x80};
    const bool free = at >= 8 && at < 32;  // token and generation: whoever knows the session checks them
    EXPECT_EQ(refusal("ERR_COLO_PEER", [&] { parse_preface(bad); }).empty(), free) << "byte " << at;
  }
  EXPECT_NE(refusal("ERR_COLO_PEER", [&] { parse_preface(std::span(bytes).first(63)); }), "");
  EXPECT_NE(refusal("ERR_COLO_PEER", [&] { parse_preface(encode_preface({token, 1, 0, 0})); }), "");
  EXPECT_NE(refusal("ERR_COLO_PEER", [&] { parse_preface(encode_preface({token, 1, 3, 3})); }), "");
}

struct ReadEpoch {
  Bytes page_payload, vmstate, disk_payload, hashes_payload;
  Bytes all_payload;  // what counts in END
  EpochSummary end;
  unsigned frames = 0;
};

// A slow, obvious reader of one epoch; takes it off the front of `bytes`.
ReadEpoch read_epoch(Bytes& bytes, std::uint64_t generation, std::uint64_t epoch) {
  ReadEpoch read;
  for (std::size_t at = 0;;) {
    const FrameHeader header =
        parse_frame_header(std::span<const std::byte>(bytes).subspan(at).first<kFrameHeaderBytes>());
    EXPECT_EQ(header.generation, generation);
    EXPECT_EQ(header.epoch, epoch);
    const auto payload = std::span<const std::byte>(bytes).subspan(at + kFrameHeaderBytes, header.length);
    at += kFrameHeaderBytes + header.length;
    ++read.frames;
    if (header.type == FrameType::end) {
      read.end = parse_end(payload.first<kEndBytes>());
      bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(at));
      return read;
    }
    Bytes& kind = header.type == FrameType::pages         ? read.page_payload
                  : header.type == FrameType::disk        ? read.disk_payload
                  : header.type == FrameType::disk_hashes ? read.hashes_payload
                                                          : read.vmstate;
    kind.insert(kind.end(), payload.begin(), payload.end());
    if (header.type == FrameType::disk_hashes) continue;
    read.all_payload.insert(read.all_payload.end(), payload.begin(), payload.end());
  }
}

TEST(CheckpointStream, WriterSendsWholeEpochsWithTheirCountsAndChecksum) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  RecordingSocketCalls recorder;
  StreamWriter writer(recorder, -1, 5);
  Bytes page(kPageSize), vmstate(30000);
  for (std::byte& byte : page) byte = std::byte(random());
  for (std::byte& byte : vmstate) byte = std::byte(random());
  const std::vector<std::uint64_t> block_pages = {100000};
  for (std::uint64_t epoch = 1; epoch <= 4; ++epoch) {
    const std::uint64_t pages = epoch == 2 ? 0 : 1500;
    const std::size_t before = recorder.bytes.size();
    ASSERT_EQ(before, 0u);
    writer.begin_epoch(epoch);
    if (epoch != 3) writer.send_vmstate(vmstate);
    for (std::uint64_t i = 0; i < pages; ++i) {
      if (i % 3 == 0) writer.entries().add_zero(0, i * 2);
      if (i % 3 == 1) writer.entries().add_delta(0, i * 2, page.data(), (random() | 128) & ~std::uint64_t{2});
      if (i % 3 == 2) writer.entries().add_raw(0, i * 2, page.data());
    }
    writer.end_epoch(pages);
    EXPECT_EQ(writer.wire_bytes(), recorder.bytes.size());
    const ReadEpoch read = read_epoch(recorder.bytes, 5, epoch);
    EXPECT_TRUE(recorder.bytes.empty());
    EXPECT_EQ(read.vmstate, epoch != 3 ? vmstate : Bytes());
    EXPECT_EQ(validate_entries(read.page_payload, block_pages, true), pages);
    EXPECT_EQ(read.end.pages, pages);
    EXPECT_EQ(read.end.payload_bytes, read.all_payload.size());
    EXPECT_EQ(read.end.hash, XXH3_64bits(read.all_payload.data(), read.all_payload.size()));
  }
}

TEST(CheckpointStream, WriterMixesDiskWritesWithPagesAndLosesNeither) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  RecordingSocketCalls recorder;
  StreamWriter writer(recorder, -1, 5);
  const std::vector<std::uint64_t> disk_bytes = {1u << 30, 1u << 20}, block_pages = {100000};
  Bytes data(kDiskEntryBytesMax), expected;
  const Bytes page(kPageSize, std::byte{1});
  for (std::byte& byte : data) byte = std::byte(random());
  for (std::uint64_t epoch = 0; epoch <= 3; ++epoch) {
    // What the entries should say, in words.
    std::vector<std::string> added, found;
    const auto say = [](std::uint16_t disk, const DiskWrite& write) {
      return std::to_string(disk) + " " + std::to_string(write.offset) + " " + std::to_string(write.length) +
             " " +
             (write.data == nullptr ? "zeros"
                                    : std::string(reinterpret_cast<const char*>(write.data),
                                                  std::min<std::size_t>(write.length, 50)));
    };
    Bytes hashes;
    std::uint64_t pages = 0;
    writer.begin_epoch(epoch);
    for (int i = 0; i < 300; ++i) {
      const auto disk = static_cast<std::uint16_t>(random() % 2);
      const std::uint64_t length = random() % (i % 20 == 0 ? kDiskEntryBytesMax : 5000) + 1;
      const DiskWrite write = {random() % ((1u << 20) - length), length,
                               random() % 4 == 0 ? nullptr : data.data()};
      switch (random() % 8) {
        case 0:
          writer.entries().add_raw(0, pages++ * 2, page.data());
          break;
        case 1:
          writer.send_gathered();
          break;
        case 2:
          if (epoch == 0) {
            const std::vector<BlockHash> asked(random() % 20 + 1, hash_of_block(data));
            writer.send_disk_hashes(disk, 3, asked);
            const DiskHashesHeader header = {disk, 0, static_cast<std::uint32_t>(asked.size()), 3};
            for (const auto& bytes : {std::as_bytes(std::span(&header, 1)), std::as_bytes(std::span(asked))})
              hashes.insert(hashes.end(), bytes.begin(), bytes.end());
          }
          break;
        default:
          writer.add_disk_write(disk, write);
          added.push_back(say(disk, write));
      }
    }
    writer.end_epoch(pages);
    EXPECT_EQ(writer.wire_bytes(), recorder.bytes.size());
    const ReadEpoch read = read_epoch(recorder.bytes, 5, epoch);
    EXPECT_TRUE(recorder.bytes.empty());
    EXPECT_EQ(validate_entries(read.page_payload, block_pages, true), pages);
    validate_disk_entries(read.disk_payload, disk_bytes);
    for_each_disk_entry(read.disk_payload, [&](std::uint16_t disk, const DiskWrite& write) {
      found.push_back(say(disk, write));
    });
    EXPECT_EQ(found, added);
    EXPECT_EQ(read.hashes_payload, hashes);
    EXPECT_EQ(read.end.payload_bytes, read.all_payload.size());
    EXPECT_EQ(read.end.hash, XXH3_64bits(read.all_payload.data(), read.all_payload.size()));
  }
}

TEST(CheckpointStream, ManySmallDiskWritesGoInOneFrame) {
  RecordingSocketCalls recorder;
  StreamWriter writer(recorder, -1, 1);
  const Bytes data(4096);
  writer.begin_epoch(1);
  for (std::uint64_t i = 0; i < 50; ++i) writer.add_disk_write(0, {i * 4096, 4096, data.data()});
  writer.end_epoch(0);
  EXPECT_EQ(recorder.calls, 1u);
  EXPECT_EQ(read_epoch(recorder.bytes, 1, 1).frames, 2u);
}

TEST(CheckpointStream, TakesOnlyTheAnswerThatWasAskedFor) {
  // The answer as the standby sends it, with one thing about it changed.
  const auto answer = [](FrameType type, std::uint64_t generation, std::uint64_t epoch, const Bytes& bits) {
    const auto header =
        encode_frame_header({type, generation, epoch, static_cast<std::uint32_t>(bits.size())});
    Bytes frame(header.size() + bits.size());
    std::copy(header.begin(), header.end(), frame.begin());
    std::copy(bits.begin(), bits.end(), frame.begin() + kFrameHeaderBytes);
    return frame;
  };
  const auto receive = [](Bytes frame, Bytes& differs) {
    auto [ours, theirs] = stream_socket_pair();
    iovec piece = {frame.data(), frame.size()};
    send_all(system_socket_calls(), theirs.get(), {&piece, 1});
    theirs.reset();
    StreamWriter writer(system_socket_calls(), ours.get(), 7);
    writer.begin_epoch(0);
    writer.receive_disk_differs(70, differs);
  };
  Bytes bits(16), differs(16);
  bits[0] = std::byte{5};
  bits[8] = std::byte{0x20};  // block 69
  receive(answer(FrameType::disk_differs, 7, 0, bits), differs);
  EXPECT_EQ(differs, bits);
  Bytes beyond = bits;
  beyond[8] = std::byte{0x40};
  for (const Bytes& bad :
       {answer(FrameType::disk_differs, 8, 0, bits), answer(FrameType::disk_differs, 7, 1, bits),
        answer(FrameType::disk, 7, 0, bits), answer(FrameType::disk_differs, 7, 0, Bytes(8)),
        answer(FrameType::disk_differs, 7, 0, Bytes(24)), answer(FrameType::disk_differs, 7, 0, beyond)}) {
    EXPECT_NE(refusal("ERR_COLO_STREAM", [&] { receive(bad, differs); }), "");
  }
  EXPECT_NE(refusal("ERR_COLO_LINK", [&] { receive({}, differs); }), "");
}

TEST(CheckpointStream, SmallEpochCostsTwoCalls) {
  RecordingSocketCalls recorder;
  StreamWriter writer(recorder, -1, 1);
  const Bytes vmstate(100), page(kPageSize);
  writer.begin_epoch(1);
  writer.send_vmstate(vmstate);
  writer.entries().add_raw(0, 0, page.data());
  writer.end_epoch(1);
  EXPECT_EQ(recorder.calls, 2u);  // device state; the pages together with END
}

TEST(CheckpointStream, DigestSeesEveryByteAndTheirOrderButNoBoundaries) {
  const Bytes bytes = from_hex("00112233445566778899");
  EpochDigest whole, parts, other;
  whole.add_payload(bytes);
  parts.add_payload(std::span(bytes).first(3));
  parts.add_payload(std::span(bytes).subspan(3));
  other.add_payload(std::span(bytes).subspan(3));
  other.add_payload(std::span(bytes).first(3));
  EXPECT_EQ(whole.summary(), parts.summary());
  EXPECT_NE(whole.summary().hash, other.summary().hash);
  whole.reset();
  EXPECT_EQ(whole.summary(), EpochDigest().summary());
}

}  // namespace
}  // namespace colo
