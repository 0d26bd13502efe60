#include "../core/page_delta.h"

#include <gtest/gtest.h>

#include <bit>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../core/error.h"

namespace colo {
namespace {

constexpr std::size_t kPayloadMax = 64u << 10;

using Bytes = std::vector<std::byte>;

Bytes gathered(const EntryWriter& writer) {
  Bytes bytes;
  for (const iovec& piece : writer.pieces()) {
    const auto* from = static_cast<const std::byte*>(piece.iov_base);
    bytes.insert(bytes.end(), from, from + piece.iov_len);
  }
  EXPECT_EQ(bytes.size(), writer.payload_bytes());
  return bytes;
}

void apply_to_blocks(const Bytes& payload, std::vector<Bytes>& blocks) {
  EntrySink sink;
  sink.write = [&](std::uint16_t block, MemoryWrite write) {
    ASSERT_LE(write.offset + write.length, blocks[block].size());
    std::memcpy(blocks[block].data() + write.offset, write.data, write.length);
  };
  sink.zero_run = [&](std::uint16_t block, PageRun run) {
    ASSERT_LE((run.first + run.count) * kPageSize, blocks[block].size());
    std::memset(blocks[block].data() + run.first * kPageSize, 0, run.count * kPageSize);
  };
  decode_entries(payload, sink);
}

// What a frame holds, kept by hand: entries appended field by field, so that bad ones can be made.
struct Payload {
  Bytes bytes;

  template <class T>
  void number(T value) {
    const auto* from = reinterpret_cast<const std::byte*>(&value);
    bytes.insert(bytes.end(), from, from + sizeof value);
  }
  Payload& entry(std::uint16_t kind, std::uint16_t block, std::uint32_t count, std::uint64_t page) {
    number(kind), number(block), number(count), number(page);
    return *this;
  }
  Payload& mask(std::uint64_t value) {
    number(value);
    return *this;
  }
  Payload& body(std::size_t length) {
    bytes.resize(bytes.size() + length, std::byte{7});
    return *this;
  }
};

std::string refusal(const Payload& payload, bool deltas_allowed = true) {
  const std::vector<std::uint64_t> block_pages = {4, 100};
  try {
    validate_entries(payload.bytes, block_pages, deltas_allowed);
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_STREAM");
    return error.what();
  }
  return "";
}

TEST(PageDelta, EveryPageComesBackAndTheShadowEqualsWhatWasSent) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::vector<std::uint64_t> block_pages = {37, 1, 90};
  std::vector<Bytes> guest, shadow, standby;
  for (const std::uint64_t pages : block_pages) guest.emplace_back(pages * kPageSize);
  shadow = standby = guest;
  EntryWriter writer(kPayloadMax, 40);
  for (int epoch = 0; epoch < 60; ++epoch) {
    const PageKernel& kernel = page_kernels()[random() % page_kernels().size()];
    const bool first_copy = epoch % 20 == 0;
    const bool with_shadow = epoch < 40;
    PageCounts counts;
    std::uint64_t pages_on_wire = 0;
    const auto flush = [&] {
      const Bytes payload = gathered(writer);
      ASSERT_LE(payload.size(), kPayloadMax);
      pages_on_wire += validate_entries(payload, block_pages, !first_copy && with_shadow);
      apply_to_blocks(payload, standby);
      writer.clear();
    };
    for (std::uint16_t block = 0; block < block_pages.size(); ++block) {
      for (std::uint64_t page = 0; page < block_pages[block]; ++page) {
        std::byte* const data = guest[block].data() + page * kPageSize;
        switch (random() % 5) {
          case 0:
            std::memset(data, 0, kPageSize);
            break;
          case 1:
            for (std::size_t i = 0; i < kPageSize; ++i) data[i] = std::byte(random());
            break;
          case 2:
            for (std::size_t n = random() % 70; n > 0; --n) data[random() % kPageSize] = std::byte(random());
            break;
          default:
            break;
        }
        if (!writer.has_room()) flush();
        std::byte* const base = with_shadow ? shadow[block].data() + page * kPageSize : nullptr;
        (first_copy ? encode_first_copy : encode_page)(writer, kernel, block, page, data, base, counts);
      }
    }
    flush();
    EXPECT_EQ(pages_on_wire, counts.on_wire());
    EXPECT_EQ(counts.on_wire() + counts.unchanged, 128u);
    if (first_copy || !with_shadow) {
      EXPECT_EQ(counts.unchanged + counts.delta, 0u);
    }
    ASSERT_EQ(standby, guest) << "epoch " << epoch;
    if (with_shadow) {
      ASSERT_EQ(shadow, guest) << "epoch " << epoch;
    }
  }
}

TEST(PageDelta, RunsBecomeOneEntryAndWholePagesAreNotCopied) {
  const Bytes zero(kPageSize);
  Bytes data(8 * kPageSize, std::byte{3});
  EntryWriter writer(1u << 20, 100);
  for (std::uint64_t page = 0; page < 1000; ++page) writer.add_zero(0, page);
  EXPECT_EQ(writer.payload_bytes(), sizeof(EntryHeader));
  EXPECT_FALSE(writer.refers_to_pages());
  for (std::uint64_t page = 0; page < 8; ++page) writer.add_raw(1, page, data.data() + page * kPageSize);
  ASSERT_EQ(writer.pieces().size(), 2u);  // both headers, then the eight pages where they lie
  EXPECT_EQ(writer.pieces()[1].iov_base, data.data());
  EXPECT_EQ(writer.pieces()[1].iov_len, data.size());
  EXPECT_TRUE(writer.refers_to_pages());
  const std::vector<std::uint64_t> block_pages = {1000, 8};
  EXPECT_EQ(validate_entries(gathered(writer), block_pages, false), 1008u);
}

TEST(PageDelta, ZeroRunsOfDifferentBlocksOrWithGapsStayApart) {
  EntryWriter writer(kPayloadMax, 100);
  writer.add_zero(0, 0);
  writer.add_zero(0, 2);
  writer.add_zero(1, 3);
  EXPECT_EQ(writer.payload_bytes(), 3 * sizeof(EntryHeader));
}

TEST(PageDelta, WriterStopsInTimeAtItsLimits) {
  Bytes data(kPageSize, std::byte{1});
  for (const std::size_t pieces_max : {2u, 9u, 1000u}) {
    EntryWriter writer(kPayloadMax, pieces_max);
    for (std::uint64_t page = 0; writer.has_room(); page += 2) writer.add_raw(0, page, data.data());
    EXPECT_LE(writer.payload_bytes(), kPayloadMax);
    EXPECT_LE(writer.pieces().size(), pieces_max);
    EXPECT_DEATH(writer.add_raw(0, 5000, data.data()), "has_room");
  }
}

TEST(PageDelta, DeltaOfEveryRunLengthIsWrittenRunByRun) {
  const std::uint64_t masks[] = {
      1, 1ull << 63, 0x8000000000000001, 0x5555555555555555, 0xfffffffffffffffe, 0x00ffff0000ff00f1, ~0ull};
  for (const std::uint64_t mask : masks) {
    Payload payload;
    payload.entry(2, 0, 1, 1).mask(mask).body(static_cast<std::size_t>(std::popcount(mask)) * kLineSize);
    ASSERT_EQ(refusal(payload), "");
    std::uint64_t seen = 0;
    unsigned writes = 0;
    EntrySink sink;
    sink.zero_run = [](std::uint16_t, PageRun) { FAIL(); };
    sink.write = [&](std::uint16_t, MemoryWrite write) {
      ++writes;
      for (std::size_t at = 0; at < write.length; at += kLineSize)
        seen |= 1ull << ((write.offset - kPageSize + at) / kLineSize);
    };
    decode_entries(payload.bytes, sink);
    EXPECT_EQ(seen, mask);
    EXPECT_EQ(writes, static_cast<unsigned>(std::popcount(mask & ~(mask << 1))));
  }
}

TEST(PageDelta, RefusesEveryMalformedEntryByName) {
  EXPECT_EQ(refusal(Payload()), "");
  EXPECT_EQ(refusal(Payload().entry(1, 1, 100, 0)), "");
  EXPECT_EQ(refusal(Payload().entry(3, 0, 1, 3).body(4096)), "");
  const auto says = [](const Payload& payload, const char* what, bool deltas = true) {
    EXPECT_NE(refusal(payload, deltas).find(what), std::string::npos)
        << refusal(payload, deltas) << " / " << what;
  };
  says(Payload().body(8), "byte 0: its header is cut off");
  says(Payload().entry(1, 0, 1, 0).body(15), "byte 16: its header is cut off");
  says(Payload().entry(0, 0, 1, 0), "kind is unknown");
  says(Payload().entry(4, 0, 1, 0), "kind is unknown");
  says(Payload().entry(1, 2, 1, 0), "no such block");
  says(Payload().entry(1, 0, 0, 0), "has no pages");
  says(Payload().entry(1, 0, 1, 4), "past the end");
  says(Payload().entry(1, 0, 5, 0), "past the end");
  says(Payload().entry(1, 0, 2, ~0ull), "past the end");
  says(Payload().entry(1, 0, ~0u, 1), "past the end");
  says(Payload().entry(2, 0, 1, 0).mask(1).body(64), "nothing yet", false);
  says(Payload().entry(2, 0, 2, 0).mask(1).body(64), "for one page");
  says(Payload().entry(2, 0, 1, 0).body(7), "mask is cut off");
  says(Payload().entry(2, 0, 1, 0).mask(0), "mask is empty");
  says(Payload().entry(2, 0, 1, 0).mask(3).body(64), "body is cut off");
  says(Payload().entry(3, 0, 1, 0).body(4088), "body is cut off");
  says(Payload().entry(3, 1, 100, 0).body(4096), "body is cut off");
}

TEST(PageDelta, SurvivesAnyBytes) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const std::vector<std::uint64_t> block_pages = {4, 100};
  std::vector<Bytes> blocks = {Bytes(4 * kPageSize), Bytes(100 * kPageSize)};
  unsigned passed = 0;
  for (int round = 0; round < 20000; ++round) {
    Payload payload;
    for (auto entries = random() % 4; entries > 0; --entries) {
      const auto kind = static_cast<std::uint16_t>(random() % 4 + (random() % 20 == 0));
      payload.entry(kind, random() % 8 / 3, static_cast<std::uint32_t>(random() % 3), random() % 5);
      if (kind == 2) payload.mask(1ull << random() % 64 | 1ull << random() % 64).body(64 * (random() % 3));
      if (kind == 3) payload.body(kPageSize * (random() % 3));
    }
    if (random() % 4 == 0 && !payload.bytes.empty()) payload.bytes.resize(random() % payload.bytes.size());
    if (!refusal(payload).empty()) continue;
    ++passed;
    apply_to_blocks(payload.bytes, blocks);  // asserts its bounds; the sanitizers watch the reads
  }
  EXPECT_GT(passed, 100u);
}

}  // namespace
}  // namespace colo
