// Both engines with a disk of a real QEMU: its mirror writes to the export, its own NBD export is the source.
#include <gtest/gtest.h>

#include "disks_harness.h"
#include "qemu_harness.h"

namespace colo {
namespace {

using testing::Bytes;
using testing::GuestDisk;
using testing::Qemu;
using testing::TestFolder;
using testing::wait_until;
using testing::WorldWithDisks;

constexpr std::uint64_t kSize = 6u << 20;

// The disk of a QEMU whose monitor writes to it as a guest would, by way of the device.
class QemuDisk : public GuestDisk {
 public:
  explicit QemuDisk(const TestFolder& folder)
      : GuestDisk(folder, "vda", kSize),
        qemu_({"-machine", "pc,accel=tcg", "-m", "16", "-blockdev",
               "driver=file,node-name=file,filename=" + file, "-blockdev",
               "driver=raw,node-name=disk,file=file", "-device", "virtio-blk-pci,id=vda,drive=disk"}) {
    auto [ours, theirs] = stream_socket_pair();
    disk->serve(std::move(ours));
    qemu_.pass_fd("mirror", theirs);
    qemu_.succeed("blockdev-add", R"({"driver":"nbd","node-name":"target","export":"",
        "server":{"type":"fd","str":"mirror"}})");
    qemu_.succeed("blockdev-mirror", R"({"job-id":"mirror","device":"disk","target":"target","sync":"none",
        "copy-mode":"write-blocking","on-target-error":"report"})");
    qemu_.wait_event("BLOCK_JOB_READY");
    UniqueFd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    qemu_.path("source").copy(address.sun_path, sizeof address.sun_path - 1);
    EXPECT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener.get(), 4), 0);
    qemu_.pass_fd("source", listener);
    qemu_.succeed("nbd-server-start", R"({"addr":{"type":"fd","data":{"str":"source"}}})");
    qemu_.succeed("block-export-add", R"({"type":"nbd","id":"source","node-name":"disk","name":"source"})");
  }
  ~QemuDisk() override { disk->close(); }

  void connect_source() override {
    disk->connect_source(disk->begin_source(connect_unix(qemu_.path("source")), "source"));
  }

  void live(std::mt19937_64& random) override {
    const std::uint64_t offset = random() % (kSize / 512) * 512;
    const std::uint64_t longest = random() % 8 == 0 ? 600 : 16;
    const std::uint64_t length = std::min((random() % longest + 1) * 512, kSize - offset);
    const std::string range = std::to_string(offset) + " " + std::to_string(length);
    switch (random() % 8) {
      case 0:
        return run("write -z " + range);
      case 1:
        return run("write -z -u " + range);
      case 2:
        return run("write -f -P " + std::to_string(random() % 256) + " " + range);
      default:
        return run("write -P " + std::to_string(random() % 256) + " " + range);
    }
  }

  // What QEMU does at each checkpoint: stops, drains, flushes.
  void stop_and_go() {
    qemu_.succeed("cont");
    qemu_.succeed("stop");
  }

 private:
  void run(const std::string& command) {
    const std::string answer = qemu_.succeed(
        "human-monitor-command",
        R"({"command-line":"qemu-io -d /machine/peripheral/vda/virtio-backend \")" + command + R"(\""})");
    EXPECT_EQ(answer.find("failed"), std::string::npos) << command << ": " << answer;
    EXPECT_EQ(answer.find("rror"), std::string::npos) << command << ": " << answer;
  }

  Qemu qemu_;
};

class EnginesWithQemu : public ::testing::Test, protected WorldWithDisks {
 protected:
  EnginesWithQemu() { open({&disk_}); }

  QemuDisk disk_{folder_};
};

TEST_F(EnginesWithQemu, StandbysDiskIsExactlyThatOfTheLastCommittedCheckpoint) {
  live(100);
  for (int session = 0; session < 3 && !HasFatalFailure(); ++session) {
    begin({session == 0});
    for (std::uint64_t epoch = 1; epoch <= 6 && !HasFatalFailure(); ++epoch) {
      const std::uint64_t before = disk_.disk->log().stats().writes;
      live(20);
      EXPECT_GE(disk_.disk->log().stats().writes, before + 20);  // each one passed the export
      engine_->hurry();
      disk_.stop_and_go();
      checkpoint(epoch);
    }
    end();
    live(10);
  }
  EXPECT_TRUE(disk_.failures().empty());
}

}  // namespace
}  // namespace colo
