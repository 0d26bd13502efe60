#define XXH_INLINE_ALL
#include "../core/disk_stream.h"

#include <gtest/gtest.h>
#include <xxhash.h>

#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../core/error.h"

namespace colo {
namespace {

using Bytes = std::vector<std::byte>;

constexpr std::size_t kPayloadMax = 1u << 20;
const std::vector<std::uint64_t> kDiskBytes = {3 * kDiskBlockBytes, 100, 40 * kDiskBlockBytes + 512};

Bytes gathered(const DiskEntryWriter& writer) {
  Bytes bytes;
  for (const iovec& piece : writer.pieces()) {
    const auto* from = static_cast<const std::byte*>(piece.iov_base);
    bytes.insert(bytes.end(), from, from + piece.iov_len);
  }
  EXPECT_EQ(bytes.size(), writer.payload_bytes());
  return bytes;
}

// What a frame holds, kept by hand: entries appended field by field, so that bad ones can be made.
struct Payload {
  Bytes bytes;

  template <class T>
  Payload& number(T value) {
    const auto* from = reinterpret_cast<const std::byte*>(&value);
    bytes.insert(bytes.end(), from, from + sizeof value);
    return *this;
  }
  Payload& entry(std::uint16_t kind, std::uint16_t disk, std::uint64_t offset, std::uint64_t length,
                 std::uint32_t reserved = 0) {
    return number(kind).number(disk).number(reserved).number(offset).number(length);
  }
  Payload& body(std::size_t length, int value = 7) {
    bytes.resize(bytes.size() + length, std::byte(value));
    return *this;
  }
};

std::string refusal(const Payload& payload) {
  try {
    validate_disk_entries(payload.bytes, kDiskBytes);
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_STREAM");
    return error.what();
  }
  return "";
}

// A slow, obvious reader: byte by byte from the description in docs/protocol.md.
void apply_naively(const Bytes& payload, std::vector<Bytes>& disks) {
  const auto number = [&](std::size_t at, std::size_t bytes) {
    std::uint64_t value = 0;
    for (std::size_t i = bytes; i-- > 0;) value = value << 8 | static_cast<std::uint64_t>(payload.at(at + i));
    return value;
  };
  for (std::size_t at = 0; at < payload.size();) {
    const auto kind = number(at, 2), disk = number(at + 2, 2), offset = number(at + 8, 8);
    const auto length = number(at + 16, 8);
    at += 24;
    for (std::uint64_t i = 0; i < length; ++i)
      disks.at(disk).at(offset + i) = kind == 2 ? payload.at(at + i) : std::byte{0};
    if (kind == 2) at += length;
    while (at % 8 != 0) EXPECT_EQ(payload.at(at++), std::byte{0});
  }
}

void apply_entries(const Bytes& payload, std::vector<Bytes>& disks) {
  for_each_disk_entry(payload, [&](std::uint16_t disk, const DiskWrite& write) {
    ASSERT_LT(disk, disks.size());
    ASSERT_LE(write.offset + write.length, disks[disk].size());
    std::byte* const to = disks[disk].data() + write.offset;
    if (write.data == nullptr) {
      std::memset(to, 0, write.length);
    } else {
      std::memcpy(to, write.data, write.length);
    }
  });
}

TEST(DiskStream, EntriesAreAsTheProtocolSaysByteForByte) {
  const Bytes data = {std::byte{1}, std::byte{2}, std::byte{3}};
  DiskEntryWriter writer(kPayloadMax, 10);
  writer.add(2, {0x0102, 3, data.data()});
  writer.add(0, {512, 0x010000, nullptr});
  Payload expected;
  expected.entry(2, 2, 0x0102, 3).number<std::uint64_t>(0x030201).entry(1, 0, 512, 0x010000);
  EXPECT_EQ(gathered(writer), expected.bytes);
  EXPECT_EQ(refusal(expected), "");
  writer.clear();
  EXPECT_EQ(writer.payload_bytes(), 0u);
  EXPECT_TRUE(writer.pieces().empty());
}

TEST(DiskStream, EveryWriteComesBackInItsOrder) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  std::vector<Bytes> source, naive, standby;
  for (const std::uint64_t size : kDiskBytes) source.emplace_back(size);
  naive = standby = source;
  Bytes data(2 * kDiskEntryBytesMax);
  for (std::byte& byte : data) byte = std::byte(random());
  DiskEntryWriter writer(kPayloadMax, 40);
  for (int round = 0; round < 200; ++round) {
    while (writer.has_room() && random() % 30 != 0) {
      const auto disk = static_cast<std::uint16_t>(random() % source.size());
      const std::uint64_t offset = random() % source[disk].size();
      std::uint64_t length = std::min(source[disk].size() - offset, kDiskEntryBytesMax);
      if (random() % 8 != 0) length = std::min<std::uint64_t>(length, random() % 9000 + 1);
      const bool zeros = random() % 4 == 0;
      const DiskWrite write = {offset, length, zeros ? nullptr : data.data() + random() % kDiskEntryBytesMax};
      writer.add(disk, write);
      for (std::uint64_t i = 0; i < length; ++i)
        source[disk][offset + i] = zeros ? std::byte{0} : write.data[i];
    }
    const Bytes payload = gathered(writer);
    ASSERT_LE(payload.size(), kPayloadMax);
    ASSERT_LE(writer.pieces().size(), 40u);
    ASSERT_EQ(payload.size() % 8, 0u);
    validate_disk_entries(payload, kDiskBytes);
    apply_entries(payload, standby);
    apply_naively(payload, naive);
    writer.clear();
    ASSERT_EQ(standby, source) << "round " << round;
    ASSERT_EQ(naive, source) << "round " << round;
  }
}

TEST(DiskStream, DataIsNotCopied) {
  const Bytes data(4096, std::byte{5});
  DiskEntryWriter writer(kPayloadMax, 10);
  writer.add(1, {0, 4096, data.data()});
  ASSERT_EQ(writer.pieces().size(), 2u);
  EXPECT_EQ(writer.pieces()[1].iov_base, data.data());
}

TEST(DiskStream, WriterStopsInTimeAtItsLimits) {
  const Bytes data(kDiskEntryBytesMax + 1, std::byte{1});
  for (const std::size_t length : {1ul, 4096ul, kDiskEntryBytesMax}) {
    for (const std::size_t pieces_max : {3u, 100u}) {
      DiskEntryWriter writer(kPayloadMax, pieces_max);
      while (writer.has_room()) writer.add(0, {0, length, data.data()});
      EXPECT_LE(writer.payload_bytes(), kPayloadMax);
      EXPECT_LE(writer.pieces().size(), pieces_max);
      EXPECT_DEATH(writer.add(0, {0, length, data.data()}), "has_room");
    }
  }
  DiskEntryWriter writer(kPayloadMax, 10);
  EXPECT_DEATH(writer.add(0, {0, kDiskEntryBytesMax + 1, data.data()}), "kDiskEntryBytesMax");
  EXPECT_DEATH(writer.add(0, {0, 0, nullptr}), "length");
  EXPECT_DEATH(DiskEntryWriter(kDiskEntryBytesMax, 10), "payload_bytes_max");
}

TEST(DiskStream, RefusesEveryMalformedEntryByName) {
  EXPECT_EQ(refusal(Payload()), "");
  EXPECT_EQ(refusal(Payload().entry(1, 2, 0, kDiskBytes[2])), "");
  EXPECT_EQ(refusal(Payload().entry(2, 1, 99, 1).number<std::uint64_t>(255)), "");
  EXPECT_EQ(refusal(Payload().entry(2, 2, 0, kDiskEntryBytesMax).body(kDiskEntryBytesMax)), "");
  const auto says = [](const Payload& payload, const char* what) {
    EXPECT_NE(refusal(payload).find(what), std::string::npos) << refusal(payload) << " / " << what;
  };
  says(Payload().body(8), "byte 0: its header is cut off");
  says(Payload().entry(1, 0, 0, 1).body(16), "byte 24: its header is cut off");
  says(Payload().entry(0, 0, 0, 1), "kind is unknown");
  says(Payload().entry(3, 0, 0, 1), "kind is unknown");
  says(Payload().entry(1, 3, 0, 1), "no such disk");
  says(Payload().entry(1, 0, 0, 1, 1), "reserved");
  says(Payload().entry(1, 0, 0, 0), "is empty");
  says(Payload().entry(1, 0, 0, kDiskBytes[0] + 1), "past the end");
  says(Payload().entry(1, 0, kDiskBytes[0], 1), "past the end");
  says(Payload().entry(1, 0, ~0ull, 2), "past the end");
  says(Payload().entry(1, 0, 1, ~0ull), "past the end");
  says(Payload().entry(2, 1, 0, 101).body(104), "past the end");
  says(Payload().entry(2, 2, 0, kDiskEntryBytesMax + 8).body(kDiskEntryBytesMax + 8), "more data");
  says(Payload().entry(2, 2, 0, 512).body(504), "data is cut off");
  says(Payload().entry(2, 1, 0, 9).body(9, 0), "data is cut off");
  says(Payload().entry(2, 1, 0, 9).body(9).body(7), "padding is not zero");
}

TEST(DiskStream, SurvivesAnyBytes) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  std::vector<Bytes> disks, naive;
  for (const std::uint64_t size : kDiskBytes) disks.emplace_back(size);
  naive = disks;
  unsigned passed = 0, refused = 0;
  for (int round = 0; round < 20000; ++round) {
    Payload payload;
    for (auto entries = random() % 4; entries > 0; --entries) {
      const auto kind = static_cast<std::uint16_t>(random() % 2 + 1);
      const std::uint64_t length = random() % 120;
      payload.entry(kind, static_cast<std::uint16_t>(random() % 13 / 4), random() % 90, length);
      if (kind == 2) payload.body(length).body((8 - length % 8) % 8, 0);
    }
    Bytes& bytes = payload.bytes;
    if (random() % 2 == 0 && !bytes.empty()) {
      for (auto flips = random() % 3; flips > 0; --flips)
        bytes[random() % bytes.size()] ^= std::byte(1 << random() % 8);
      if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    }
    const bool bad = !refusal(payload).empty();
    ++(bad ? refused : passed);
    if (bad) continue;
    apply_entries(bytes, disks);  // asserts its bounds; the sanitizers watch the reads
    apply_naively(bytes, naive);
  }
  EXPECT_EQ(disks, naive);
  EXPECT_GT(passed, 1000u);
  EXPECT_GT(refused, 1000u);
}

TEST(DiskStream, BlockHashIsXxh3In128BitsBigEndian) {
  Bytes block(kDiskBlockBytes, std::byte{3});
  const XXH128_hash_t expected = XXH3_128bits(block.data(), block.size());
  const BlockHash hash = hash_of_block(block);
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(hash[i], static_cast<std::byte>(expected.high64 >> (56 - 8 * i)));
    EXPECT_EQ(hash[8 + i], static_cast<std::byte>(expected.low64 >> (56 - 8 * i)));
  }
  block[1234] = std::byte{4};
  EXPECT_NE(hash_of_block(block), hash);
  EXPECT_NE(hash_of_block(std::span(block).first(512)), hash_of_block(std::span(block).first(511)));
}

std::string hashes_refusal(const Payload& payload) {
  try {
    validate_disk_hashes(payload.bytes, kDiskBytes);
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_STREAM");
    return error.what();
  }
  return "";
}

Payload hashes(std::uint16_t disk, std::uint32_t count, std::uint64_t first_block, std::size_t body,
               std::uint16_t reserved = 0) {
  Payload payload;
  payload.number(disk).number(reserved).number(count).number(first_block).body(body);
  return payload;
}

TEST(DiskStream, HashesComeBackAsSent) {
  const Payload payload = hashes(2, 3, 38, 48);  // the disk's last blocks, the very last one being short
  const DiskHashesHeader header = validate_disk_hashes(payload.bytes, kDiskBytes);
  EXPECT_EQ(header.disk, 2u);
  EXPECT_EQ(header.count, 3u);
  EXPECT_EQ(header.first_block, 38u);
  ASSERT_EQ(hashes_of(payload.bytes).size(), 3u);
  EXPECT_EQ(std::memcmp(hashes_of(payload.bytes).data(), payload.bytes.data() + 16, 48), 0);
}

TEST(DiskStream, RefusesMalformedHashesByName) {
  const auto says = [](const Payload& payload, const char* what) {
    EXPECT_NE(hashes_refusal(payload).find(what), std::string::npos)
        << hashes_refusal(payload) << " / " << what;
  };
  EXPECT_EQ(hashes_refusal(hashes(0, 3, 0, 48)), "");
  EXPECT_EQ(hashes_refusal(hashes(1, 1, 0, 16)), "");
  Payload cut;
  says(cut.body(15), "cut off");
  says(hashes(3, 1, 0, 16), "no such disk");
  says(hashes(0, 1, 0, 16, 1), "reserved");
  says(hashes(0, 0, 0, 0), "impossible number");
  says(hashes(2, kDiskHashesMax + 1, 0, (kDiskHashesMax + 1) * 16), "impossible number");
  says(hashes(0, 2, 0, 16), "another number");
  says(hashes(0, 2, 0, 48), "another number");
  says(hashes(0, 3, 1, 48), "past the end");
  says(hashes(1, 2, 0, 32), "past the end");
  says(hashes(0, 1, 3, 16), "past the end");
  says(hashes(0, 1, ~0ull, 16), "past the end");
}

TEST(DiskStream, DiffersHasWholeWords) {
  EXPECT_EQ(differs_bytes(1), 8u);
  EXPECT_EQ(differs_bytes(64), 8u);
  EXPECT_EQ(differs_bytes(65), 16u);
  EXPECT_EQ(differs_bytes(kDiskHashesMax), 512u);
}

}  // namespace
}  // namespace colo
