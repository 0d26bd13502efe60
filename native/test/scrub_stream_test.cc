#include "../core/scrub_stream.h"

#include <gtest/gtest.h>

#include <cstring>

#include "engine_harness.h"

namespace colo {
namespace {

using testing::Bytes;
using testing::ModelledGuest;

const std::vector<std::uint64_t> kBlockPages = {100, 5000};

std::string refusal(const Bytes& payload) {
  try {
    validate_scrub(payload, kBlockPages);
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_STREAM");
    return error.what();
  }
  return "";
}

Bytes encoded(std::uint16_t block, PageRun run, const std::vector<std::uint64_t>& left_out = {}) {
  std::vector<std::uint64_t> hashes(run.count);
  std::vector<bool> mask(run.count);
  for (std::uint64_t i = 0; i < run.count; ++i) hashes[i] = 0x1111 * (i + 1);
  for (const std::uint64_t i : left_out) mask[i] = true;
  return encode_scrub(block, run, hashes, mask);
}

TEST(ScrubStream, PayloadIsAsTheProtocolSaysByteForByte) {
  const Bytes payload = encoded(1, {0x0203, 3}, {1});
  const unsigned char expected[] = {1,    0,    0, 0, 3, 0, 0, 0,  // block 1, 3 pages
                                    3,    2,    0, 0, 0, 0, 0, 0,  // from page 0x0203 on
                                    2,    0,    0, 0, 0, 0, 0, 0,  // without the second
                                    0x11, 0x11, 0, 0, 0, 0, 0, 0, 0x33, 0x33, 0, 0, 0, 0, 0, 0};
  ASSERT_EQ(payload.size(), sizeof expected);
  EXPECT_EQ(std::memcmp(payload.data(), expected, sizeof expected), 0);
  EXPECT_EQ(refusal(payload), "");
}

TEST(ScrubStream, LargestAndSmallestPayloadAreAsLongAsTheirLimitsSay) {
  EXPECT_EQ(encoded(1, {0, kScrubPagesMax}).size(), kScrubBytesMax);
  EXPECT_EQ(encoded(0, {99, 1}).size(), kScrubBytesMin);
  EXPECT_EQ(refusal(encoded(1, {904, kScrubPagesMax})), "");
}

TEST(ScrubStream, WhatAPeerMayNotSendIsRefused) {
  const auto changed = [](std::size_t at, unsigned value, std::size_t bytes = 1) {
    Bytes payload = encoded(0, {90, 10}, {3});
    std::memcpy(payload.data() + at, &value, bytes);
    return refusal(payload);
  };
  EXPECT_EQ(changed(0, 0), "");
  EXPECT_NE(changed(0, 2).find("no such RAM block"), std::string::npos);
  EXPECT_NE(changed(2, 1).find("reserved"), std::string::npos);
  EXPECT_NE(changed(4, 0).find("number of pages"), std::string::npos);
  EXPECT_NE(changed(4, kScrubPagesMax + 1, 4).find("number of pages"), std::string::npos);
  EXPECT_NE(changed(8, 91).find("past the end"), std::string::npos);
  EXPECT_NE(changed(8, ~0u, 4).find("past the end"), std::string::npos);
  EXPECT_NE(changed(15, 0x80).find("past the end"), std::string::npos);
  EXPECT_NE(changed(17, 4).find("bits of pages"), std::string::npos);
  EXPECT_NE(changed(23, 0x80).find("bits of pages"), std::string::npos);
  EXPECT_NE(changed(16, 9).find("number of hashes"), std::string::npos);
  EXPECT_NE(changed(16, 0).find("number of hashes"), std::string::npos);
  const Bytes whole = encoded(0, {90, 10}, {3});
  for (std::size_t length = 0; length < whole.size(); length += 8)
    EXPECT_NE(refusal(Bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length))), "")
        << length;
  Bytes longer = whole;
  longer.resize(whole.size() + 8);
  EXPECT_NE(refusal(longer), "");
  Bytes masked = encoded(1, {0, 65});
  masked.resize(kScrubBytesMin);  // its mask needs 16 bytes
  masked[4] = std::byte{255};
  EXPECT_NE(refusal(masked).find("mask is cut off"), std::string::npos);
}

// The pages of a run as their guest has them.
Bytes truth(const ModelledGuest& guest, std::uint16_t block, PageRun run,
            const std::vector<std::uint64_t>& left_out = {}) {
  std::vector<std::uint64_t> hashes;
  std::vector<bool> mask(run.count);
  for (std::uint64_t i = 0; i < run.count; ++i)
    hashes.push_back(hash_of_page(guest.model()[block].data() + (run.first + i) * kPageSize));
  for (const std::uint64_t i : left_out) mask[i] = true;
  return encode_scrub(block, run, hashes, mask);
}

TEST(ScrubStream, CheckFindsTheFirstDifferentPageAndNothingElse) {
  ModelledGuest guest({{100, true}, {90, false}});
  std::mt19937_64 random(1);
  guest.live(random, 200);
  const GuestMemory memory(guest.pid(), guest.blocks());
  for (const std::uint16_t block : {0, 1}) {
    const PageRun run{3, 80};
    const Bytes before = truth(guest, block, run), without = truth(guest, block, run, {47, 60});
    EXPECT_EQ(check_scrub(memory, before), 80u);
    EXPECT_EQ(check_scrub(memory, without), 78u);
    guest.scribble(block, 50 * kPageSize + 77, 1, random() | 1);
    guest.scribble(block, 63 * kPageSize, 1, random() | 1);
    const std::string name = "block" + std::to_string(block);
    try {
      check_scrub(memory, before);
      ADD_FAILURE() << "nothing was found";
    } catch (const Error& error) {
      EXPECT_STREQ(error.code(), "ERR_COLO_SCRUB");
      EXPECT_EQ(std::string(error.what()),
                "the page at address 0x32000 of RAM block " + name + " is another one than the primary's");
    }
    EXPECT_EQ(check_scrub(memory, without), 78u);
  }
  guest.kill();
  EXPECT_THROW(check_scrub(memory, truth(guest, 0, {0, 1})), Error);
}

}  // namespace
}  // namespace colo
