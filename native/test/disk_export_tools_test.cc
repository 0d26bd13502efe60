// The export and the tools that people have: qemu-io, qemu-img, nbdinfo.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <thread>

#include "disk_export_harness.h"
#include "nbd_harness.h"

namespace colo {
namespace {

using testing::DiskExportTest;
using testing::TestFolder;
using Bytes = std::vector<std::byte>;

constexpr std::uint64_t kSize = testing::kExportSize;

// Hands over whoever connects to a unix socket.
class UnixListener {
 public:
  UnixListener(const std::string& path, std::function<void(UniqueFd)> accepted)
      : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    path.copy(address.sun_path, sizeof address.sun_path - 1);
    if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
        ::listen(fd_.get(), 16) != 0)
      std::abort();
    thread_ = std::thread([this, accepted] {
      for (;;) {
        UniqueFd client(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!client) return;
        accepted(std::move(client));
      }
    });
  }
  ~UnixListener() {
    ::shutdown(fd_.get(), SHUT_RDWR);
    thread_.join();
  }

 private:
  UniqueFd fd_;
  std::thread thread_;
};

struct ToolResult {
  int status;
  std::string output;
};
ToolResult run_tool(const std::string& command) {
  FILE* const pipe = ::popen((command + " 2>&1").c_str(), "re");
  if (pipe == nullptr) std::abort();
  ToolResult result = {0, ""};
  char buffer[512];
  while (const std::size_t got = std::fread(buffer, 1, sizeof buffer, pipe))
    result.output.append(buffer, got);
  result.status = ::pclose(pipe);
  return result;
}

TEST_F(DiskExportTest, SpeaksWithQemuIo) {
  const TestFolder folder;
  const UnixListener listening(folder / "nbd", [this](UniqueFd client) { disk_.serve(std::move(client)); });
  begin();
  const std::string image = " 'nbd+unix:///?socket=" + (folder / "nbd") + "'";
  const ToolResult written = run_tool(
      "qemu-io -f raw -c 'write -P 3 0 1M' -c 'write -f -P 4 4096 4096' -c 'write -P 6 2M 2M' "
      "-c 'write -z 2M 1M' -c 'discard 0 64k' -c 'aio_write -P 8 64k 3k' -c 'aio_write -P 9 70k 5k' "
      "-c 'aio_flush' -c 'flush' -c 'write -P 1 4M 512' -c 'sleep 0'" +
      image);
  EXPECT_EQ(written.status, 0) << written.output;
  EXPECT_EQ(written.output.find("failed"), std::string::npos) << written.output;
  EXPECT_NE(written.output.find("wrote 2097152/2097152"), std::string::npos) << written.output;
  EXPECT_GE(disk_.log().stats().writes, 8u);
  const ToolResult read = run_tool("qemu-io -f raw -c 'read 0 4k'" + image);
  EXPECT_NE(read.output.find("Operation not supported"), std::string::npos) << read.output;
}

TEST_F(DiskExportTest, TakesAnImageFromQemuImg) {
  const TestFolder folder;
  // Without the export around it: what has come is looked at after qemu-img has left, which would end the
  // session.
  const UnixListener listening(folder / "nbd", [this](UniqueFd client) {
    NbdConnection(std::move(client), disk_.log()).serve([] {});
  });
  const std::string file = folder / "image";
  Bytes content(kSize);
  std::mt19937_64 random(3);
  for (std::size_t at = 0; at < content.size(); at += 7 * 4096) {
    for (std::size_t i = at; i < std::min(at + 5000, content.size()); ++i) content[i] = std::byte(random());
  }
  {
    const UniqueFd fd(::open(file.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_EQ(::write(fd.get(), content.data(), content.size()), static_cast<ssize_t>(content.size()));
  }
  begin();
  const ToolResult converted = run_tool("qemu-img convert -n -f raw -O raw -m 4 -W " + file +
                                        " 'nbd+unix:///?socket=" + (folder / "nbd") + "'");
  EXPECT_EQ(converted.status, 0) << converted.output;
  EXPECT_TRUE(taken() == content);
}

TEST_F(DiskExportTest, TellsNbdinfoWhatItIs) {
  const TestFolder folder;
  const UnixListener listening(folder / "nbd", [this](UniqueFd client) { disk_.serve(std::move(client)); });
  const ToolResult info =
      run_tool("nbdinfo --json --no-content 'nbd+unix:///?socket=" + (folder / "nbd") + "'");
  ASSERT_EQ(info.status, 0) << info.output << "\nis nbdinfo (package libnbd-bin) installed?";
  for (const char* expected :
       {"\"protocol\": \"newstyle-fixed\"", "\"structured\": false", "\"export-size\": 4194816",
        "\"is_read_only\": false", "\"can_flush\": true", "\"can_fua\": true", "\"can_trim\": true",
        "\"can_zero\": true", "\"can_multi_conn\": true", "\"block_size_minimum\": 1",
        "\"block_size_preferred\": 4096", "\"block_size_maximum\": 1048576"}) {
    EXPECT_NE(info.output.find(expected), std::string::npos) << expected << " in\n" << info.output;
  }
  const ToolResult list =
      run_tool("nbdinfo --list --json --no-content 'nbd+unix:///?socket=" + (folder / "nbd") + "'");
  EXPECT_EQ(list.status, 0) << list.output;
}

}  // namespace
}  // namespace colo
