#include "../core/disk_export.h"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <atomic>
#include <random>
#include <thread>

#include "disk_export_harness.h"
#include "nbd_harness.h"

namespace colo {
namespace {

using nbd::Message;
using testing::DiskExportTest;
using testing::NbdWriter;
using testing::open_descriptors;
using testing::served_socket;
using testing::TestFolder;
using testing::wait_until;
using Bytes = std::vector<std::byte>;

constexpr std::uint64_t kSize = testing::kExportSize;

TEST_F(DiskExportTest, TakesWritesIntoTheLogAndAnswers) {
  NbdWriter writer(served_socket(disk_));
  begin();
  Bytes expected(kSize);
  std::mt19937_64 random(1);
  for (int i = 0; i < 300; ++i) {
    const std::uint64_t offset = random() % kSize;
    const std::uint64_t length =
        std::min(random() % (random() % 8 == 0 ? kWriteBytesMax : 5000) + 1, kSize - offset);
    const std::uint16_t flags = random() % 2 == 0 ? nbd::kCommandFua : 0;
    Bytes data(length);
    if (random() % 5 != 0) {
      for (std::byte& byte : data) byte = std::byte(random());
      ASSERT_EQ(writer.request(nbd::kWrite, offset, length, data, flags), 0u);
    } else {
      ASSERT_EQ(writer.request(random() % 2 == 0 ? nbd::kTrim : nbd::kWriteZeroes, offset, length, {}, flags),
                0u);
    }
    std::copy(data.begin(), data.end(), expected.begin() + static_cast<std::ptrdiff_t>(offset));
    if (random() % 30 == 0) {
      ASSERT_EQ(writer.request(nbd::kFlush, 0, 0), 0u);
    }
  }
  EXPECT_TRUE(taken() == expected);
}

// Many requests on the way at once, in pieces that the kernel may cut anywhere.
TEST_F(DiskExportTest, TakesAnyCutOfTheByteStream) {
  NbdWriter writer(served_socket(disk_));
  begin();
  Bytes expected(kSize), stream;
  std::mt19937_64 random(2);
  constexpr int kRequests = 200;
  for (int i = 0; i < kRequests; ++i) {
    const std::uint64_t length = random() % (i % 10 == 0 ? 100'000 : 600) + 1,
                        offset = random() % (kSize - length);
    const Bytes data(length, std::byte(random()));
    std::copy(data.begin(), data.end(), expected.begin() + static_cast<std::ptrdiff_t>(offset));
    const auto message = Message()
                             .put(nbd::kRequestMagic)
                             .put(std::uint16_t{0})
                             .put(static_cast<std::uint16_t>(nbd::kWrite))
                             .put(static_cast<std::uint64_t>(i))
                             .put(offset)
                             .put(static_cast<std::uint32_t>(length))
                             .put(data);
    stream.insert(stream.end(), message.bytes().begin(), message.bytes().end());
  }
  for (std::span<const std::byte> rest = stream; !rest.empty();) {
    const std::size_t piece =
        std::min<std::size_t>(rest.size(), random() % (random() % 4 == 0 ? 70'000 : 60) + 1);
    writer.send(rest.first(piece));
    rest = rest.subspan(piece);
  }
  for (int i = 0; i < kRequests; ++i) ASSERT_EQ(writer.answer(), 0u);
  EXPECT_TRUE(taken() == expected);
}

TEST_F(DiskExportTest, RefusesWithAnErrorWhatItCantCarryOut) {
  NbdWriter writer(served_socket(disk_));
  begin();
  const Bytes data(1000, std::byte{1});
  EXPECT_EQ(writer.request(nbd::kRead, 0, 512), nbd::kErrorNotSupported);
  EXPECT_EQ(writer.request(nbd::kWrite, kSize - 999, 1000, data), nbd::kErrorNoSpace);
  EXPECT_EQ(writer.request(nbd::kWrite, ~std::uint64_t{0}, 1000, data), nbd::kErrorNoSpace);
  EXPECT_EQ(writer.request(nbd::kWriteZeroes, kSize, 1), nbd::kErrorNoSpace);
  EXPECT_EQ(writer.request(nbd::kTrim, 1, kSize), nbd::kErrorInvalid);
  EXPECT_EQ(writer.request(nbd::kTrim, 0, 0), nbd::kErrorInvalid);
  EXPECT_EQ(writer.request(nbd::kWrite, 0, 0), nbd::kErrorInvalid);
  EXPECT_EQ(writer.request(nbd::kWrite, 0, 1000, data, 1 << 2), nbd::kErrorInvalid);
  EXPECT_EQ(writer.request(nbd::kWriteZeroes, 0, 1, {}, 1 << 4), nbd::kErrorInvalid);
  EXPECT_EQ(writer.request(5, 0, 512), nbd::kErrorInvalid);  // CACHE
  EXPECT_EQ(writer.request(7, 0, 512), nbd::kErrorInvalid);  // BLOCK_STATUS
  EXPECT_EQ(writer.request(77, 0, 512), nbd::kErrorInvalid);
  EXPECT_EQ(disk_.log().stats().writes, 0u);
  EXPECT_EQ(writer.request(nbd::kWrite, 0, 1000, data), 0u);
  EXPECT_EQ(disk_.log().stats().writes, 1u);
}

TEST_F(DiskExportTest, ServesManyClientsAtOnce) {
  begin();
  constexpr unsigned kClients = 4;
  std::vector<std::thread> clients;
  for (unsigned client = 0; client < kClients; ++client) {
    clients.emplace_back([this, client] {
      NbdWriter writer(served_socket(disk_));
      for (unsigned i = 0; i < 200; ++i) {
        const Bytes data(4096, std::byte(client + 1));
        ASSERT_EQ(writer.request(nbd::kWrite, (i * kClients + client) % 1000 * 4096, 4096, data), 0u);
      }
      writer.leave();
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(disk_.log().stats().writes, kClients * 200u);
}

// --- the end of a client
// -----------------------------------------------------------------------------------------------------------

TEST_F(DiskExportTest, TheEndOfTheMirrorFailsTheSession) {
  for (const bool polite : {true, false}) {
    NbdWriter writer(served_socket(disk_));
    begin();
    disk_.require_mirror();
    if (polite) {
      writer.leave();
    } else {
      writer.cut();
    }
    ASSERT_TRUE(wait_until([&] {
      const std::lock_guard lock(mutex_);
      return !failures_.empty();
    }));
    EXPECT_NE(failures_[0].find("the mirror of disk 'vda' has ended"), std::string::npos);
    EXPECT_EQ(disk_.log().stats().differing_blocks, disk_blocks(kSize));
    EXPECT_THROW((void)disk_.log().take_first_copy_writes(), Error);
    EXPECT_THROW(disk_.require_mirror(), Error);
    disk_.log().end_session();
    failures_.clear();
  }
}

TEST_F(DiskExportTest, WithoutASessionTheEndOfTheMirrorIsRemembered) {
  NbdWriter writer(served_socket(disk_));
  begin();
  disk_.log().seal(1);
  (void)disk_.log().take_sealed(1);
  disk_.log().confirm(1);
  disk_.log().end_session();
  EXPECT_EQ(disk_.log().stats().differing_blocks, 0u);
  writer.cut();
  ASSERT_TRUE(wait_until([this] { return disk_.log().stats().differing_blocks == disk_blocks(kSize); }));
  EXPECT_TRUE(failures_.empty());
}

TEST_F(DiskExportTest, CloseEndsAllClientsAndSaysNothingMore) {
  std::vector<NbdWriter> writers;
  for (int i = 0; i < 3; ++i) writers.emplace_back(served_socket(disk_));
  const UniqueFd silent = served_socket(disk_);
  begin();
  std::thread other([this] { disk_.close(); });
  disk_.close();
  other.join();
  for (NbdWriter& writer : writers) EXPECT_THROW((void)writer.receive(1), Error);
  EXPECT_TRUE(failures_.empty());
  EXPECT_THROW(disk_.log().require_session(), Error);  // no checkpoint leaves without its writes
  auto [ours, theirs] = stream_socket_pair();
  EXPECT_THROW(disk_.serve(std::move(theirs)), Error);
  EXPECT_THROW((void)disk_.begin_source(std::move(ours), ""), Error);
}

TEST_F(DiskExportTest, ClientsThatHaveLeftLeaveNothingBehind) {
  const std::vector<std::string> before = open_descriptors(::getpid());
  for (int i = 0; i < 50; ++i) NbdWriter(served_socket(disk_)).leave();
  disk_.close();
  EXPECT_EQ(open_descriptors(::getpid()).size(), before.size());
}

// --- hostile clients
// -----------------------------------------------------------------------------------------------------------------

Bytes concat(std::initializer_list<Message> messages) {
  Bytes all;
  for (const Message& message : messages)
    all.insert(all.end(), message.bytes().begin(), message.bytes().end());
  return all;
}
Message flags(std::uint32_t value = nbd::kFixedNewstyle | nbd::kNoZeroes) { return Message().put(value); }
Message option(std::uint32_t type, const Message& data = {}) {
  return Message()
      .put(nbd::kOptionMagic)
      .put(type)
      .put(static_cast<std::uint32_t>(data.bytes().size()))
      .put(data.bytes());
}
Message go_data(std::uint32_t name_bytes = 0, std::uint16_t requests = 0) {
  return Message().put(name_bytes).put(requests);
}
Message request(std::uint16_t command, std::uint64_t offset, std::uint32_t length,
                std::uint32_t magic = nbd::kRequestMagic) {
  return Message()
      .put(magic)
      .put(std::uint16_t{0})
      .put(command)
      .put(std::uint64_t{1})
      .put(offset)
      .put(length);
}

struct Hostile {
  const char* name;
  Bytes bytes;
};

std::vector<Hostile> hostile_clients() {
  const Message go = option(nbd::kOptionGo, go_data());
  return {
      {"not_fixed_newstyle", concat({flags(0)})},
      {"unknown_flags", concat({flags(7)})},
      {"wrong_option_magic", concat({flags(), Message().put(nbd::kMagic).put(std::uint64_t{7})})},
      {"endless_option",
       concat({flags(), Message().put(nbd::kOptionMagic).put(std::uint32_t{7}).put(~std::uint32_t{0})})},
      {"export_name", concat({flags(), option(nbd::kOptionExportName)})},
      {"wrong_request_magic", concat({flags(), go, request(nbd::kFlush, 0, 0, 0x12345678)})},
      {"write_without_end", concat({flags(), go, request(nbd::kWrite, 0, ~std::uint32_t{0})})},
      {"write_too_long", concat({flags(), go, request(nbd::kWrite, 0, kWriteBytesMax + 1)})},
      {"refused_write_too_long", concat({flags(), go, request(nbd::kWrite, kSize, kWriteBytesMax + 1)})},
  };
}

class DiskExportHostile : public DiskExportTest, public ::testing::WithParamInterface<Hostile> {};

TEST_P(DiskExportHostile, EndsItsOwnConnectionOnly) {
  NbdWriter good(served_socket(disk_));
  const UniqueFd bad = served_socket(disk_);
  Bytes bytes = GetParam().bytes;
  iovec piece = {bytes.data(), bytes.size()};
  send_all(system_socket_calls(), bad.get(), {&piece, 1});
  // Whatever was answered before, the end comes.
  Bytes answers(4096);
  while (receive_some(system_socket_calls(), bad.get(), answers, "the test's end") != 0) continue;
  EXPECT_EQ(good.request(nbd::kWriteZeroes, 0, 512), 0u);
}

INSTANTIATE_TEST_SUITE_P(Table, DiskExportHostile, ::testing::ValuesIn(hostile_clients()),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST_F(DiskExportTest, AnswersOptionsThatItDoesntGrant) {
  const UniqueFd socket = served_socket(disk_);
  const auto exchange = [&](const Message& sent, std::size_t reply_bytes) {
    Bytes bytes(sent.bytes().begin(), sent.bytes().end()), reply(reply_bytes);
    iovec piece = {bytes.data(), bytes.size()};
    send_all(system_socket_calls(), socket.get(), {&piece, 1});
    receive_all(system_socket_calls(), socket.get(), reply);
    return reply_bytes < 16 ? 0 : load_big_endian<std::uint32_t>(reply.data() + 12);
  };
  Bytes greeting(18);
  receive_all(system_socket_calls(), socket.get(), greeting);
  exchange(flags(), 0);
  EXPECT_EQ(exchange(option(nbd::kOptionStructuredReply), 20), nbd::kReplyErrorUnsupported);
  EXPECT_EQ(exchange(option(5), 20), nbd::kReplyErrorUnsupported);  // STARTTLS
  EXPECT_EQ(exchange(option(nbd::kOptionList, Message().put(std::uint8_t{1})), 20), nbd::kReplyErrorInvalid);
  EXPECT_EQ(exchange(option(nbd::kOptionList), 44), nbd::kReplyServer);
  EXPECT_EQ(exchange(option(nbd::kOptionGo, Message().put(std::uint32_t{1})), 20), nbd::kReplyErrorInvalid);
  EXPECT_EQ(exchange(option(nbd::kOptionGo, go_data(~std::uint32_t{0})), 20), nbd::kReplyErrorInvalid);
  EXPECT_EQ(exchange(option(nbd::kOptionInfo, go_data(0, 1)), 20), nbd::kReplyErrorInvalid);
  EXPECT_EQ(
      exchange(option(nbd::kOptionGo, Message().put(std::uint32_t{1}).put('a').put(std::uint16_t{0})), 20),
      nbd::kReplyErrorUnknown);
  EXPECT_EQ(exchange(option(nbd::kOptionInfo, go_data()), 32 + 34 + 20), nbd::kReplyInfo);
  EXPECT_EQ(exchange(option(nbd::kOptionAbort), 20), nbd::kReplyAck);
  EXPECT_EQ(receive_some(system_socket_calls(), socket.get(), greeting, "the test's end"), 0u);
  // It has negotiated nothing: no mirror was lost.
  EXPECT_TRUE(failures_.empty());
}

TEST_F(DiskExportTest, OptionsComeToAnEnd) {
  const UniqueFd socket = served_socket(disk_);
  Bytes bytes = concat({flags()});
  for (int i = 0; i < 1000; ++i) {
    const Message list = option(nbd::kOptionList);
    bytes.insert(bytes.end(), list.bytes().begin(), list.bytes().end());
  }
  iovec piece = {bytes.data(), bytes.size()};
  std::thread reader([&] {
    Bytes answers(4096);
    try {
      while (receive_some(system_socket_calls(), socket.get(), answers, "the test's end") != 0) continue;
    } catch (const Error&) {
    }
  });
  try {
    send_all(system_socket_calls(), socket.get(), {&piece, 1});
  } catch (const Error& error) {
    EXPECT_EQ(error.sys_errno(), EPIPE);
  }
  reader.join();
}

// A conversation in which bytes were changed, cut out or doubled: whatever it has become, nothing but the
// connection ends, and nothing is written outside the disk (asserted by the log).
TEST_F(DiskExportTest, OutlivesMutatedConversations) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  Bytes payload(300, std::byte{5});
  const Bytes conversation =
      concat({flags(), option(nbd::kOptionStructuredReply), option(nbd::kOptionList),
              option(nbd::kOptionInfo, go_data()), option(nbd::kOptionGo, go_data()),
              request(nbd::kWrite, 4096, 300).put(payload), request(nbd::kTrim, 0, 4096),
              request(nbd::kRead, 0, 512), request(nbd::kFlush, 0, 0),
              request(nbd::kWrite, kSize - 300, 300).put(payload), request(nbd::kWriteZeroes, 0, kSize),
              request(nbd::kDisconnect, 0, 0)});
  NbdWriter good(served_socket(disk_));
  for (int round = 0; round < 3000; ++round) {
    Bytes mutated = conversation;
    for (std::uint64_t changes = random() % 3; changes > 0; --changes) {
      const auto at = mutated.begin() + static_cast<std::ptrdiff_t>(random() % mutated.size());
      switch (random() % 4) {
        case 0:
          *at = std::byte(random());
          break;
        case 1:
          *at ^= std::byte(1u << random() % 8);
          break;
        case 2:
          mutated.erase(at, at + static_cast<std::ptrdiff_t>(random() %
                                                             static_cast<std::uint64_t>(mutated.end() - at)));
          break;
        default:
          mutated.insert(at, random() % 40, std::byte(random()));
          break;
      }
    }
    UniqueFd socket = served_socket(disk_);
    iovec piece = {mutated.data(), mutated.size()};
    try {
      send_all(system_socket_calls(), socket.get(), {&piece, 1});
    } catch (const Error& error) {
      ASSERT_EQ(error.sys_errno(), EPIPE);
    }
    ::shutdown(socket.get(), SHUT_WR);
    Bytes answers(4096);
    try {
      while (receive_some(system_socket_calls(), socket.get(), answers, "the test's end") != 0) continue;
    } catch (const Error& error) {
      ASSERT_EQ(error.sys_errno(), ECONNRESET);
    }
  }
  EXPECT_EQ(good.request(nbd::kWriteZeroes, 0, 512), 0u);
}

}  // namespace
}  // namespace colo
