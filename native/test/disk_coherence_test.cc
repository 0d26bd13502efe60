// A paused QEMU and a disk that changes under it: whatever its cache mode and its way of doing I/O, it reads
// what StandbyDisk has written, also where it had read before.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "../core/standby_disk.h"
#include "child_process.h"
#include "test_disks.h"

namespace colo {
namespace {

using testing::ChildProcess;
using testing::DiskBytes;
using testing::LoopDevice;
using testing::wait_until;

constexpr std::uint64_t kSize = 32u << 20;

struct Mode {
  std::string cache, aio;
  bool block_device = false;
  std::string more = "";  // of -drive's options
};

std::string name_of(const ::testing::TestParamInfo<Mode>& info) {
  std::string name = info.param.cache + "_" + info.param.aio + (info.param.block_device ? "_device" : "") +
                     (info.param.more.empty() ? "" : "_unmap");
  return name;
}

// -S: its guest doesn't run, as a standby's doesn't.
class PausedQemu {
 public:
  PausedQemu(const std::string& disk, const Mode& mode) {
    EXPECT_NE(::mkdtemp(folder_.data()), nullptr);
    process_ = std::make_unique<ChildProcess>([&](int) { return execute(disk, mode); });
    const bool connected = wait_until([&] { return connect_qmp() || exited(); });
    EXPECT_TRUE(connected && !exited()) << "is qemu-system-x86_64 installed? It says: " << log();
    read_line();
    ask(R"({"execute":"qmp_capabilities"})");
  }
  ~PausedQemu() {
    process_.reset();
    std::filesystem::remove_all(folder_);
  }

  // What qemu-io, inside QEMU, says to one command on the disk: not to the monitor, but on standard output.
  std::string qemu_io(const std::string& command) {
    const std::size_t before = log().size();
    const std::string answer =
        ask(R"({"execute":"human-monitor-command","arguments":{"command-line":"qemu-io disk \")" + command +
            R"(\""}})");
    EXPECT_NE(answer.find(R"("return": "")"), std::string::npos) << answer;
    return log().substr(before);
  }

 private:
  int execute(const std::string& disk, const Mode& mode) {
    const int log = ::open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT, 0666);
    ::dup2(log, STDOUT_FILENO);
    ::dup2(log, STDERR_FILENO);
    const std::string drive =
        "id=disk,if=none,format=raw,file=" + disk + ",cache=" + mode.cache + ",aio=" + mode.aio + mode.more;
    const std::string socket = "unix:" + folder_ + "/qmp,server=on,wait=off";
    // A line at a time, so that what a command has said is in the log when its answer comes.
    ::execlp("stdbuf", "stdbuf", "-oL", "qemu-system-x86_64", "-S", "-machine", "q35,accel=tcg", "-m", "16",
             "-nodefaults", "-display", "none", "-qmp", socket.c_str(), "-drive", drive.c_str(), "-device",
             "virtio-blk-pci,drive=disk", nullptr);
    return 127;
  }

  bool connect_qmp() {
    qmp_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    (folder_ + "/qmp").copy(address.sun_path, sizeof address.sun_path - 1);
    return ::connect(qmp_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }
  bool exited() const { return testing::status_field(process_->pid(), "State").starts_with("Z"); }
  std::string log() const {
    std::ifstream file(folder_ + "/log");
    return {std::istreambuf_iterator<char>(file), {}};
  }

  std::string ask(const std::string& command) {
    EXPECT_EQ(::send(qmp_.get(), command.data(), command.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(command.size()));
    for (;;) {
      const std::string line = read_line();
      if (line.empty() || line.find("\"event\"") == std::string::npos) return line;
    }
  }
  std::string read_line() {
    std::string line;
    for (char c; ::recv(qmp_.get(), &c, 1, 0) == 1 && c != '\n';) line += c;
    return line;
  }

  std::string folder_ = "/tmp/colo-coherence-XXXXXX";
  std::unique_ptr<ChildProcess> process_;
  UniqueFd qmp_;
};

class DiskCoherence : public ::testing::TestWithParam<Mode> {
 protected:
  void SetUp() override {
    UniqueFd fd;
    if (GetParam().block_device) {
      device_ = std::make_unique<LoopDevice>(kSize);
      path_ = device_->path();
      fd = device_->open();
    } else {
      path_ = "/var/tmp/colo-coherence-disk-XXXXXX";
      fd.reset(::mkstemp(path_.data()));
      ASSERT_EQ(::ftruncate(fd.get(), kSize), 0);
    }
    disk_ = std::make_unique<StandbyDisk>("disk", std::move(fd), kSize);
    // Written before QEMU opens it, from the second MiB to the fifth; all else is holes.
    fill(1, 4, 0xaa);
    disk_->sync();
    qemu_ = std::make_unique<PausedQemu>(path_, GetParam());
  }
  void TearDown() override {
    qemu_.reset();
    if (!GetParam().block_device) ::unlink(path_.c_str());
  }

  void fill(std::uint64_t first_mib, std::uint64_t count_mib, int value) {
    const DiskBytes data(kDiskEntryBytesMax, std::byte(value));
    for (std::uint64_t at = first_mib << 20; at < (first_mib + count_mib) << 20; at += data.size())
      disk_->apply({at, data.size(), data.data()});
  }
  void clear(std::uint64_t first_mib, std::uint64_t count_mib) {
    disk_->apply({first_mib << 20, count_mib << 20, nullptr});
  }
  // QEMU reads nothing but `value` there.
  void expect_read(std::uint64_t first_mib, std::uint64_t count_mib, int value) {
    const std::string said = qemu_io("read -P " + std::to_string(value) + " " + std::to_string(first_mib) +
                                     "M " + std::to_string(count_mib) + "M");
    const std::string bytes = std::to_string(count_mib << 20);
    EXPECT_NE(said.find("read " + bytes + "/" + bytes + " bytes"), std::string::npos) << said;
    EXPECT_EQ(said.find("failed"), std::string::npos)
        << "MiB " << first_mib << " isn't " << value << ": " << said;
  }
  std::string qemu_io(const std::string& command) { return qemu_->qemu_io(command); }
  void expect_written() {
    expect_read(0, 1, 0);
    expect_read(1, 4, 0xaa);
    expect_read(5, 27, 0);
  }

  std::string path_;
  std::unique_ptr<LoopDevice> device_;
  std::unique_ptr<StandbyDisk> disk_;
  std::unique_ptr<PausedQemu> qemu_;
};

// Without this, a wrong pattern or a device that QEMU doesn't know would pass for equal.
TEST_P(DiskCoherence, QemuIoTellsOfADifference) {
  const std::string said = qemu_io("read -P 171 1M 4M");
  EXPECT_NE(said.find("Pattern verification failed"), std::string::npos) << said;
}

TEST_P(DiskCoherence, QemuReadsWhatWasWrittenUnderIt) {
  expect_written();  // so that whatever caches there are, they are warm
  EXPECT_NE(qemu_io("map"), "");
  fill(2, 1, 0xbb);   // over data
  fill(10, 2, 0xcc);  // over a hole
  clear(4, 1);        // data becomes zeros
  disk_->reserve(20u << 20, 1u << 20);
  expect_read(1, 1, 0xaa);
  expect_read(2, 1, 0xbb);
  expect_read(3, 1, 0xaa);
  expect_read(4, 1, 0);
  expect_read(10, 2, 0xcc);
  expect_read(20, 1, 0);
  EXPECT_NE(qemu_io("map"), "");
  for (int round = 1; round <= 20; ++round) {  // again and again, the same places
    fill(2, 1, round);
    expect_read(2, 1, round);
    fill(20, 1, 100 + round);  // what was reserved
    expect_read(20, 1, 100 + round);
    clear(10, 1);
    expect_read(10, 1, 0);
    fill(10, 1, round);
    expect_read(10, 1, round);
    disk_->sync();
    expect_read(2, 1, round);
    expect_read(10, 1, round);
  }
}

// After a take-over it is the other way round: what QEMU then writes is what is read, by it and by us.
TEST_P(DiskCoherence, QemusOwnWritesAreOnTopOfOurs) {
  expect_written();
  fill(2, 1, 0xbb);
  disk_->sync();
  EXPECT_NE(qemu_io("write -P 221 2M 512k").find("wrote 524288/524288"), std::string::npos);
  EXPECT_NE(qemu_io("write -z 3M 512k").find("wrote 524288/524288"), std::string::npos);
  EXPECT_EQ(qemu_io("flush"), "");
  expect_read(4, 1, 0xaa);
  const UniqueFd file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  const DiskBytes bytes = testing::contents_of(file.get(), 4u << 20);
  EXPECT_EQ(bytes[2u << 20], std::byte{221});
  EXPECT_EQ(bytes[(2u << 20) + (512u << 10)], std::byte{0xbb});
  EXPECT_EQ(bytes[3u << 20], std::byte{0});
  EXPECT_EQ(bytes[(3u << 20) + (512u << 10)], std::byte{0xaa});
}

// aio=native wants O_DIRECT, which is what these cache modes open with.
INSTANTIATE_TEST_SUITE_P(Modes, DiskCoherence,
                         ::testing::Values(Mode{"none", "threads"}, Mode{"none", "native"},
                                           Mode{"none", "io_uring"}, Mode{"directsync", "threads"},
                                           Mode{"directsync", "native"}, Mode{"directsync", "io_uring"},
                                           Mode{"writeback", "threads"}, Mode{"writeback", "io_uring"},
                                           Mode{"writethrough", "threads"}, Mode{"writethrough", "io_uring"},
                                           Mode{"none", "native", false,
                                                ",discard=unmap,detect-zeroes=unmap"},
                                           Mode{"none", "native", true}, Mode{"writeback", "threads", true}),
                         name_of);

}  // namespace
}  // namespace colo
