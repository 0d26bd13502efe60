#include "../core/frame_buffer.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

namespace colo {
namespace {

std::string be32(std::uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

TEST(FrameScanner, FindsEveryEndHoweverTheStreamIsCut) {
  std::mt19937 random(1);
  std::string stream;
  std::vector<std::size_t> ends;
  for (int i = 0; i < 200; ++i) {
    const std::uint32_t length = i % 20 == 0 ? kFrameBytesMax : random() % 100;
    stream += be32(length) + be32(std::min<std::uint32_t>(length, 12)) + std::string(length, 'x');
    ends.push_back(stream.size());
  }
  for (std::size_t piece_max : {1, 3, 7, 64, 100000}) {
    FrameScanner scanner;
    std::size_t at = 0, ended = 0;
    while (at < stream.size()) {
      const std::size_t piece = std::min<std::size_t>(1 + random() % piece_max, stream.size() - at);
      ASSERT_TRUE(scanner.feed(bytes_of(stream).subspan(at, piece)));
      at += piece;
      while (ended < ends.size() && ends[ended] <= at) ++ended;
      ASSERT_EQ(scanner.frames(), ended);
      ASSERT_EQ(scanner.into_frame(), at - (ended == 0 ? 0 : ends[ended - 1]));
      ASSERT_GT(scanner.missing(), 0u);
    }
  }
}

TEST(FrameScanner, MissingNeverGoesPastAFrame) {
  const std::string frame = be32(30) + be32(12) + std::string(30, 'x');
  FrameScanner scanner;
  std::size_t at = 0;
  while (scanner.frames() == 0) {
    const std::size_t piece = scanner.missing();
    ASSERT_LE(at + piece, frame.size());
    ASSERT_TRUE(scanner.feed(bytes_of(frame).subspan(at, piece)));
    at += piece;
  }
  EXPECT_EQ(at, frame.size());
}

TEST(FrameScanner, RefusesWhatQemuCannotHaveWritten) {
  EXPECT_FALSE(FrameScanner().feed(bytes_of(be32(kFrameBytesMax + 1) + be32(0))));
  EXPECT_FALSE(FrameScanner().feed(bytes_of(be32(10) + be32(11))));
  EXPECT_TRUE(FrameScanner().feed(bytes_of(be32(0) + be32(0))));
}

std::string take_all(FrameBuffer& buffer, std::size_t bytes_max) {
  iovec pieces[4];
  std::string out;
  const std::size_t count = buffer.gather(bytes_max, pieces);
  for (std::size_t i = 0; i < count; ++i) {
    out.append(static_cast<const char*>(pieces[i].iov_base), pieces[i].iov_len);
  }
  return out;
}

TEST(FrameBuffer, BehavesLikeAString) {
  std::mt19937 random(2);
  ChunkPool pool(2);
  FrameBuffer buffer(pool);
  std::string oracle;
  for (int step = 0; step < 3000; ++step) {
    const std::size_t amount = random() % 3 == 0 ? random() % 90000 : random() % 500;
    switch (random() % 4) {
      case 0:
      case 1: {
        const std::span<std::byte> room = buffer.room();
        ASSERT_FALSE(room.empty());
        const std::size_t filled = std::min(room.size(), amount);
        std::fill_n(room.begin(), filled, static_cast<std::byte>(step));
        buffer.append(filled);
        oracle.append(filled, static_cast<char>(step));
        break;
      }
      case 2: {
        const std::size_t dropped = std::min(amount, oracle.size()) / 2;
        buffer.truncate(dropped);
        oracle.resize(oracle.size() - dropped);
        break;
      }
      default: {
        const std::string got = take_all(buffer, amount);
        ASSERT_EQ(got, oracle.substr(0, got.size()));
        ASSERT_TRUE(got.size() > 0 || amount == 0 || oracle.empty());
        buffer.consume(got.size());
        oracle.erase(0, got.size());
      }
    }
    ASSERT_EQ(buffer.size(), oracle.size());
  }
}

}  // namespace
}  // namespace colo
