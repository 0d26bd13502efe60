#include "../core/nbd_client.h"

#include <gtest/gtest.h>

#include <functional>
#include <random>
#include <thread>

#include "nbd_harness.h"

namespace colo {
namespace {

using nbd::Message;
using testing::QemuNbd;
using testing::TestFolder;
using Bytes = std::vector<std::byte>;

constexpr std::uint64_t kSize = 6u << 20;

// Data at some places, holes between them.
Bytes sparse_file(const std::string& path) {
  Bytes content(kSize);
  const UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  EXPECT_EQ(::ftruncate(fd.get(), kSize), 0);
  std::mt19937_64 random(4);
  for (const auto& [offset, length] :
       {std::pair{0u, 4096u}, {200u << 10, 300u << 10}, {(1u << 20) - 4096, 8192u}, {5u << 20, 1u << 20}}) {
    for (std::size_t i = offset; i < offset + length; ++i) content[i] = std::byte(random());
    EXPECT_EQ(::pwrite(fd.get(), content.data() + offset, length, offset), static_cast<ssize_t>(length));
  }
  return content;
}

// Reads all of the ranges into one buffer of 0xee and returns it; `holes` gets what the client told of.
Bytes read_all(NbdClient& client, const std::vector<std::pair<std::uint64_t, std::uint64_t>>& ranges,
               std::uint64_t* hole_bytes = nullptr) {
  std::uint64_t total = 0;
  for (const auto& [offset, length] : ranges) total += length;
  Bytes bytes(total, std::byte{0xee});
  std::vector<NbdRead> reads;
  std::size_t at = 0;
  for (const auto& [offset, length] : ranges) {
    reads.push_back({offset, std::span(bytes).subspan(at, length)});
    at += length;
  }
  client.read(reads, [&](std::uint64_t, std::span<std::byte> hole) {
    for (const std::byte byte : hole) EXPECT_EQ(byte, std::byte{0xee});
    std::memset(hole.data(), 0, hole.size());
    if (hole_bytes != nullptr) *hole_bytes += hole.size();
  });
  return bytes;
}

TEST(NbdClient, ReadsFromQemuNbd) {
  const TestFolder folder;
  const Bytes content = sparse_file(folder / "disk");
  QemuNbd server(folder / "disk", folder / "socket", {"-r"});
  NbdClient client(server.connect(), "");
  client.negotiate();
  EXPECT_EQ(client.size_bytes(), kSize);
  std::uint64_t hole_bytes = 0;
  EXPECT_TRUE(read_all(client, {{0, kSize}}, &hole_bytes) == content);
  EXPECT_GT(hole_bytes, 4u << 20);  // structured replies were spoken
  std::mt19937_64 random(6);
  for (int round = 0; round < 50; ++round) {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    Bytes expected;
    for (std::uint64_t i = random() % 20; i > 0; --i) {
      const std::uint64_t offset = random() % (kSize / 512) * 512;
      const std::uint64_t length = std::min(random() % 400 * 512, kSize - offset);
      ranges.emplace_back(offset, length);
      expected.insert(expected.end(), content.begin() + static_cast<std::ptrdiff_t>(offset),
                      content.begin() + static_cast<std::ptrdiff_t>(offset + length));
    }
    ASSERT_TRUE(read_all(client, ranges) == expected);
  }
}

// The text of the error with which `body` ends.
std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_DISK");
    EXPECT_NE(std::string(error.what()).find("NBD export 'name'"), std::string::npos) << error.what();
    return error.what();
  }
  return "no error";
}

TEST(NbdClient, SaysWhyQemuNbdRefuses) {
  const TestFolder folder;
  sparse_file(folder / "disk");
  QemuNbd server(folder / "disk", folder / "socket", {"-x", "other"});
  NbdClient client(server.connect(), "name");
  const std::string error = error_of([&] { client.negotiate(); });
  EXPECT_NE(error.find("name"), std::string::npos);
  EXPECT_NE(error.find("refused (reply 6)"), std::string::npos) << error;
}

TEST(NbdClient, AServerThatDiesIsAnErrorThenAndLater) {
  const TestFolder folder;
  sparse_file(folder / "disk");
  QemuNbd server(folder / "disk", folder / "socket", {"-x", "name"});
  NbdClient client(server.connect(), "name");
  client.negotiate();
  server.kill();
  EXPECT_NE(error_of([&] { read_all(client, {{0, 65536}}); }), "no error");
  EXPECT_NE(error_of([&] { read_all(client, {{0, 65536}}); }).find("has failed before"), std::string::npos);
}

TEST(NbdClient, AServersReadErrorEndsTheRead) {
  const TestFolder folder;
  sparse_file(folder / "disk");
  const std::string image =
      "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"blkdebug\",\"image\":{\"driver\":"
      "\"file\",\"filename\":\"" +
      (folder / "disk") + "\"},\"inject-error\":[{\"event\":\"none\",\"iotype\":\"read\",\"errno\":5}]}}";
  QemuNbd server(image, folder / "socket", {"-x", "name"});
  NbdClient client(server.connect(), "name");
  client.negotiate();
  // qemu-nbd 7.2 doesn't say why: it hangs up.
  EXPECT_NE(error_of([&] { read_all(client, {{0, kSize}}); }), "no error");
}

// --- servers of the test's own
// ----------------------------------------------------------------------------------------------------------

class FakeServer {
 public:
  explicit FakeServer(bool structured = true) : structured_(structured) {
    auto [ours, theirs] = stream_socket_pair();
    socket_ = std::move(ours);
    client_ = std::move(theirs);
  }
  UniqueFd client() { return std::move(client_); }

  // Writes everything at once; the client reads it as it goes.
  void say(const Message& message) {
    Bytes bytes(message.bytes().begin(), message.bytes().end());
    iovec piece = {bytes.data(), bytes.size()};
    send_all(system_socket_calls(), socket_.get(), {&piece, 1});
  }
  void greet() { say(greeting()); }
  void negotiate(std::uint64_t size = kSize) {
    greet();
    say(option_reply(nbd::kOptionStructuredReply, structured_ ? std::uint32_t{nbd::kReplyAck}
                                                              : std::uint32_t{nbd::kReplyErrorUnsupported}));
    say(option_reply(nbd::kOptionGo, nbd::kReplyInfo,
                     Message().put(nbd::kInfoExport).put(size).put(std::uint16_t{1})));
    say(option_reply(nbd::kOptionGo, nbd::kReplyAck));
  }
  // Nothing more comes; what the client sends goes nowhere.
  void close() { ::shutdown(socket_.get(), SHUT_WR); }

  static Message greeting(std::uint16_t flags = nbd::kFixedNewstyle | nbd::kNoZeroes) {
    return Message().put(nbd::kMagic).put(nbd::kOptionMagic).put(flags);
  }
  static Message option_reply(std::uint32_t option, std::uint32_t type, const Message& data = {}) {
    return Message()
        .put(nbd::kOptionReplyMagic)
        .put(option)
        .put(type)
        .put(static_cast<std::uint32_t>(data.bytes().size()))
        .put(data.bytes());
  }
  static Message chunk(std::uint16_t flags, std::uint16_t type, const Message& data,
                       std::uint64_t handle = 1) {
    return Message()
        .put(nbd::kStructuredReplyMagic)
        .put(flags)
        .put(type)
        .put(handle)
        .put(static_cast<std::uint32_t>(data.bytes().size()))
        .put(data.bytes());
  }
  static Message data_chunk(std::uint64_t offset, std::size_t length, std::uint16_t flags = 0,
                            std::uint64_t handle = 1) {
    return chunk(flags, nbd::kChunkOffsetData, Message().put(offset).put(Bytes(length, std::byte{3})),
                 handle);
  }
  static Message hole_chunk(std::uint64_t offset, std::uint32_t length, std::uint16_t flags = 0) {
    return chunk(flags, nbd::kChunkOffsetHole, Message().put(offset).put(length));
  }
  static Message simple(std::uint32_t error, std::size_t length, std::uint64_t handle = 1) {
    return Message().put(nbd::kSimpleReplyMagic).put(error).put(handle).put(Bytes(length, std::byte{3}));
  }

 private:
  const bool structured_;
  UniqueFd socket_, client_;
};

TEST(NbdClient, SpeaksSimpleRepliesToo) {
  FakeServer server(false);
  server.negotiate();
  NbdClient client(server.client(), "name");
  client.negotiate();
  server.say(FakeServer::simple(0, 1000));
  server.say(FakeServer::simple(0, 500, 2));
  EXPECT_TRUE(read_all(client, {{0, 1000}, {4096, 500}}) == Bytes(1500, std::byte{3}));
  server.say(FakeServer::simple(5, 0, 3));
  EXPECT_NE(error_of([&] { read_all(client, {{0, 1000}}); }).find("Input/output error"), std::string::npos);
}

TEST(NbdClient, TakesAnswersInAnyOrderOfRequests) {
  FakeServer server;
  server.negotiate();
  NbdClient client(server.client(), "name");
  client.negotiate();
  server.say(FakeServer::data_chunk(0, 600));
  server.say(FakeServer::data_chunk(4096, 500, nbd::kChunkDone, 2));
  server.say(FakeServer::hole_chunk(600, 300));
  server.say(FakeServer::data_chunk(900, 100));
  server.say(FakeServer::chunk(nbd::kChunkDone, nbd::kChunkNone, {}));
  Bytes expected(1500, std::byte{3});
  std::fill(expected.begin() + 600, expected.begin() + 900, std::byte{0});
  EXPECT_TRUE(read_all(client, {{0, 1000}, {4096, 500}}) == expected);
}

TEST(NbdClient, CutEndsANegotiationAndARead) {
  for (const bool reading : {false, true}) {
    FakeServer server;
    if (reading) server.negotiate();
    NbdClient client(server.client(), "name");
    if (reading) client.negotiate();
    std::thread other([&] { client.cut(); });
    EXPECT_NE(error_of([&] {
                if (reading) {
                  read_all(client, {{0, 1000}});
                } else {
                  client.negotiate();
                }
              }),
              "no error");
    other.join();
  }
}

struct Broken {
  const char* name;
  std::function<void(FakeServer&)> say;
  const char* error;  // a part of its text
  bool structured = true;
};

class NbdClientNegotiation : public ::testing::TestWithParam<Broken> {};

TEST_P(NbdClientNegotiation, BrokenServersAreAnError) {
  FakeServer server;
  GetParam().say(server);
  NbdClient client(server.client(), "name");
  server.close();
  const std::string error = error_of([&] { client.negotiate(); });
  EXPECT_NE(error.find(GetParam().error), std::string::npos) << error;
  EXPECT_NE(error_of([&] { read_all(client, {{0, 512}}); }), "no error");
}

const auto kGoInfo = [](const Message& data) {
  return [data](FakeServer& server) {
    server.greet();
    server.say(FakeServer::option_reply(nbd::kOptionStructuredReply, nbd::kReplyAck));
    server.say(FakeServer::option_reply(nbd::kOptionGo, nbd::kReplyInfo, data));
    server.say(FakeServer::option_reply(nbd::kOptionGo, nbd::kReplyAck));
  };
};
const auto kSay = [](const Message& message) {
  return [message](FakeServer& server) { server.say(message); };
};
const auto kReplySay = [](const Message& message) {
  return [message](FakeServer& server) {
    server.greet();
    server.say(message);
  };
};
Message block_sizes(std::uint32_t minimum, std::uint32_t maximum) {
  return Message().put(nbd::kInfoBlockSize).put(minimum).put(std::uint32_t{4096}).put(maximum);
}

INSTANTIATE_TEST_SUITE_P(
    Table, NbdClientNegotiation,
    ::testing::Values(
        Broken{"silent", [](FakeServer&) {}, "closed"},
        Broken{"no_nbd", kSay(Message().put(std::uint64_t{1}).put(std::uint64_t{1})), "isn't an NBD server"},
        Broken{"oldstyle", kSay(Message().put(nbd::kMagic).put(std::uint64_t{0x420281861253})), "newstyle"},
        Broken{"not_fixed", kSay(FakeServer::greeting(0)), "fixed newstyle"},
        Broken{"wrong_reply_magic", kReplySay(Message().put(std::uint64_t{7}).put(std::uint64_t{7})), "magic"},
        Broken{"other_option", kReplySay(FakeServer::option_reply(nbd::kOptionList, nbd::kReplyAck)), "wasn't sent"},
        Broken{"endless_reply",
               kReplySay(Message()
                             .put(nbd::kOptionReplyMagic)
                             .put(static_cast<std::uint32_t>(nbd::kOptionStructuredReply))
                             .put(std::uint32_t{1})
                             .put(~std::uint32_t{0})),
               "4294967295 bytes"},
        Broken{"no_size", kGoInfo(Message().put(std::uint16_t{99})), "doesn't say how large"},
        Broken{"empty", kGoInfo(Message().put(nbd::kInfoExport).put(std::uint64_t{0}).put(std::uint16_t{1})),
               "is empty"},
        Broken{"cut_info", kGoInfo(Message().put(std::uint8_t{0})), "cut off"},
        Broken{"wrong_size_info", kGoInfo(Message().put(nbd::kInfoExport).put(std::uint32_t{9})), "wrong length"},
        Broken{"wrong_block_info", kGoInfo(Message().put(nbd::kInfoBlockSize)), "wrong length"},
        Broken{"coarse_blocks", kGoInfo(block_sizes(1u << 20, 1u << 20)), "impossible block sizes"},
        Broken{"odd_blocks", kGoInfo(block_sizes(3, 1u << 20)), "impossible block sizes"},
        Broken{"small_requests", kGoInfo(block_sizes(512, 4096)), "impossible block sizes"},
        Broken{"refused_with_text",
               [](FakeServer& server) {
                 server.greet();
                 server.say(FakeServer::option_reply(nbd::kOptionStructuredReply, nbd::kReplyAck));
                 server.say(FakeServer::option_reply(nbd::kOptionGo, nbd::kReplyErrorUnknown,
                                                     Message().put(std::as_bytes(std::span("no disk today", 13)))));
               },
               "no disk today"},
        Broken{"endless_info",
               [](FakeServer& server) {
                 server.greet();
                 server.say(FakeServer::option_reply(nbd::kOptionStructuredReply, nbd::kReplyAck));
                 for (int i = 0; i < 100; ++i)
                   server.say(FakeServer::option_reply(nbd::kOptionGo, nbd::kReplyInfo,
                                                       Message().put(std::uint16_t{99})));
               },
               "goes on"}),
    [](const auto& tested) { return std::string(tested.param.name); });

class NbdClientRead : public ::testing::TestWithParam<Broken> {};

TEST_P(NbdClientRead, BrokenAnswersAreAnError) {
  FakeServer server(GetParam().structured);
  server.negotiate();
  NbdClient client(server.client(), "name");
  client.negotiate();
  GetParam().say(server);
  server.close();
  const std::string error = error_of([&] { read_all(client, {{512, 1000}}); });
  EXPECT_NE(error.find(GetParam().error), std::string::npos) << error;
  EXPECT_NE(error_of([&] { read_all(client, {{512, 1000}}); }).find("failed before"), std::string::npos);
}

Message error_chunk(std::uint16_t text_bytes, std::size_t given) {
  return FakeServer::chunk(nbd::kChunkDone, nbd::kChunkErrorBit | 1,
                           Message().put(std::uint32_t{5}).put(text_bytes).put(Bytes(given, std::byte{'x'})));
}

INSTANTIATE_TEST_SUITE_P(
    Table, NbdClientRead,
    ::testing::Values(
        Broken{"nothing", [](FakeServer&) {}, ""},
        Broken{"wrong_magic", kSay(Message().put(std::uint32_t{7})), "magic"},
        Broken{"simple_where_structured", kSay(FakeServer::simple(0, 1000)), "magic"},
        Broken{"structured_where_simple", kSay(FakeServer::data_chunk(512, 1000, 1)), "magic", false},
        Broken{"simple_of_nobody", kSay(FakeServer::simple(0, 1000, 9)), "isn't open", false},
        Broken{"chunk_of_nobody", kSay(FakeServer::data_chunk(512, 1000, 1, 9)), "isn't open"},
        Broken{"unknown_chunk", kSay(FakeServer::chunk(1, 5, {})), "unknown type"},
        Broken{"data_without_data",
               kSay(FakeServer::chunk(1, nbd::kChunkOffsetData, Message().put(std::uint64_t{512}))),
               "wrong length"},
        Broken{"hole_of_wrong_length",
               kSay(FakeServer::chunk(1, nbd::kChunkOffsetHole, Message().put(std::uint64_t{512}))),
               "wrong length"},
        Broken{"before", kSay(FakeServer::data_chunk(0, 1000)), "out of order"},
        Broken{"gap", kSay(FakeServer::data_chunk(513, 999)), "out of order"},
        Broken{"far_away", kSay(FakeServer::data_chunk(~std::uint64_t{0}, 10)), "out of order"},
        Broken{"too_much", kSay(FakeServer::data_chunk(512, 1001)), "beyond"},
        Broken{"huge_hole", kSay(FakeServer::hole_chunk(512, ~std::uint32_t{0})), "beyond"},
        Broken{"empty_hole", kSay(FakeServer::hole_chunk(512, 0)), "empty"},
        Broken{"too_little", kSay(FakeServer::data_chunk(512, 999, nbd::kChunkDone)), "before all has come"},
        Broken{"done_at_once", kSay(FakeServer::chunk(nbd::kChunkDone, nbd::kChunkNone, {})),
               "before all has come"},
        Broken{"none_goes_on", kSay(FakeServer::chunk(0, nbd::kChunkNone, {})), "empty chunk"},
        Broken{"none_with_data",
               kSay(FakeServer::chunk(nbd::kChunkDone, nbd::kChunkNone, Message().put(std::uint8_t{1}))),
               "empty chunk"},
        Broken{"cut_error",
               kSay(FakeServer::chunk(1, nbd::kChunkErrorBit | 1, Message().put(std::uint32_t{5}))),
               "wrong length"},
        Broken{"error_text_too_long", kSay(error_chunk(500, 3)), "wrong length"},
        Broken{"endless_error", kSay(error_chunk(65535, 65535)), "wrong length"},
        Broken{"error", kSay(error_chunk(3, 3)), "Input/output error: xxx"}),
    [](const auto& tested) { return std::string(tested.param.name); });

// A whole conversation with bytes changed: it ends with the content or with an error, and reads nothing
// beyond its buffers (which the address sanitizer watches).
TEST(NbdClient, OutlivesMutatedServers) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  int errors = 0;
  for (int round = 0; round < 2000; ++round) {
    const bool structured = round % 2 == 0;
    Bytes bytes;
    const auto add = [&bytes](const Message& message) {
      bytes.insert(bytes.end(), message.bytes().begin(), message.bytes().end());
    };
    add(FakeServer::greeting());
    add(FakeServer::option_reply(
        nbd::kOptionStructuredReply,
        structured ? std::uint32_t{nbd::kReplyAck} : std::uint32_t{nbd::kReplyErrorUnsupported}));
    add(FakeServer::option_reply(nbd::kOptionGo, nbd::kReplyInfo,
                                 Message().put(nbd::kInfoExport).put(kSize).put(std::uint16_t{1})));
    add(FakeServer::option_reply(nbd::kOptionGo, nbd::kReplyInfo, block_sizes(512, 1u << 25)));
    add(FakeServer::option_reply(nbd::kOptionGo, nbd::kReplyAck));
    if (structured) {
      add(FakeServer::data_chunk(0, 600));
      add(FakeServer::hole_chunk(600, 400, nbd::kChunkDone));
      add(FakeServer::chunk(nbd::kChunkDone, nbd::kChunkErrorBit | 2,
                            Message().put(std::uint32_t{5}).put(std::uint16_t{0}).put(std::uint64_t{0}), 2));
    } else {
      add(FakeServer::simple(0, 1000));
      add(FakeServer::simple(5, 0, 2));
    }
    bytes[random() % bytes.size()] ^= std::byte(1u << random() % 8);
    if (random() % 3 == 0) bytes.resize(random() % bytes.size());
    FakeServer server;
    server.say(Message().put(bytes));
    NbdClient client(server.client(), "name");
    server.close();
    try {
      client.negotiate();
      read_all(client, {{0, 1000}});
      read_all(client, {{0, 1000}});
    } catch (const Error& error) {
      ++errors;
      ASSERT_STREQ(error.code(), "ERR_COLO_DISK");
    }
  }
  EXPECT_GT(errors, 1000);
}

}  // namespace
}  // namespace colo
