#include "../core/heartbeat_frame.h"

#include <gtest/gtest.h>

#include <random>

#include "../core/error.h"

namespace colo {
namespace {

using Bytes = std::array<std::byte, kHeartbeatBytes>;

constexpr HeartbeatFrame kFrame = {0x0102030405060708, 9, 10, 11, 12, 13, 0x1112131415161718};

std::string refusal(const Bytes& bytes) {
  try {
    parse_heartbeat(bytes);
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_PEER");
    return error.what();
  }
  return "";
}

TEST(HeartbeatFrame, IsWhatTheProtocolSays) {
  const Bytes bytes = encode_heartbeat(kFrame);
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  EXPECT_EQ(text, std::string("CHBT\0\1\0\0"
                              "\1\2\3\4\5\6\7\10"
                              "\0\0\0\0\0\0\0\11"
                              "\0\0\0\0\0\0\0\12"
                              "\0\0\0\0\0\0\0\13"
                              "\0\0\0\14\0\0\0\15"
                              "\21\22\23\24\25\26\27\30",
                              kHeartbeatBytes));
}

TEST(HeartbeatFrame, ComesBackAsItWas) {
  const HeartbeatFrame frame = parse_heartbeat(encode_heartbeat(kFrame));
  EXPECT_EQ(encode_heartbeat(frame), encode_heartbeat(kFrame));
  EXPECT_EQ(frame.progress, kFrame.progress);
}

TEST(HeartbeatFrame, EveryBitOfItsFixedPartIsChecked) {
  for (const std::size_t at : {0, 1, 2, 3, 4, 5, 6, 7}) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes bytes = encode_heartbeat(kFrame);
      bytes[at] ^= std::byte(1 << bit);
      EXPECT_NE(refusal(bytes), "") << "byte " << at << ", bit " << bit;
    }
  }
}

TEST(HeartbeatFrame, SaysWhatIsWrong) {
  Bytes bytes = encode_heartbeat(kFrame);
  bytes[5] = std::byte(2);
  EXPECT_EQ(refusal(bytes), "a heartbeat of version 2 came; this agent speaks version 1");
}

TEST(HeartbeatFrame, WhateverIsAcceptedIsWhatIsEncoded) {
  std::mt19937_64 random(1);
  for (int round = 0; round < 20'000; ++round) {
    Bytes bytes = encode_heartbeat(kFrame);
    for (int change = 0; change < 4; ++change) bytes[random() % bytes.size()] = std::byte(random());
    if (!refusal(bytes).empty()) continue;
    EXPECT_EQ(encode_heartbeat(parse_heartbeat(bytes)), bytes);
  }
}

}  // namespace
}  // namespace colo
