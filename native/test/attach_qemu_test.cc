// The tracker on a real QEMU: sandboxed as tightly as it allows, stopped at its first instruction.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <filesystem>
#include <sstream>

#include "../core/dirty_tracker.h"
#include "../core/error.h"
#include "../core/process_maps.h"
#include "child_process.h"

namespace colo {
namespace {

using testing::ChildProcess;
using testing::has_userfaultfd_mappings;
using testing::open_descriptors;
using testing::wait_until;

// All of it is compared again and again, so it is little; and no other mapping of QEMU has this size.
constexpr std::uint64_t kRamBytes = (6u << 20) + 8192;

class Qemu {
 public:
  explicit Qemu(bool shared, uid_t uid) {
    EXPECT_NE(::mkdtemp(folder_.data()), nullptr);
    EXPECT_EQ(::chown(folder_.c_str(), uid, uid), 0);
    process_ = std::make_unique<ChildProcess>([&](int) { return execute(shared, uid); });
    EXPECT_TRUE(wait_until([&] { return connect_qmp(); })) << "is qemu-system-x86_64 installed?";
    EXPECT_NE(read_line().find("\"QMP\""), std::string::npos);
    succeed("qmp_capabilities");
  }
  ~Qemu() {
    process_.reset();
    std::filesystem::remove_all(folder_);
  }

  pid_t pid() const { return process_->pid(); }

  // The answer to one command; events in between are passed over.
  std::string ask(const std::string& command) {
    EXPECT_EQ(::send(qmp_.get(), command.data(), command.size(), MSG_NOSIGNAL),
              static_cast<ssize_t>(command.size()));
    for (;;) {
      const std::string line = read_line();
      if (line.empty() || line.find("\"event\"") == std::string::npos) return line;
    }
  }

  void succeed(const std::string& command) {
    EXPECT_NE(ask(R"({"execute":")" + command + R"("})").find("\"return\""), std::string::npos) << command;
  }

  RamBlock ram() const {
    for (const Mapping& mapping : read_process_maps(pid())) {
      if (mapping.end - mapping.start == kRamBytes) return {"pc.ram", mapping.start, kRamBytes};
    }
    ADD_FAILURE() << "QEMU's RAM was not found";
    return {};
  }

 private:
  int execute(bool shared, uid_t uid) {
    const int log = ::open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT, 0666);
    ::dup2(log, STDOUT_FILENO);
    ::dup2(log, STDERR_FILENO);
    if (uid != 0 && (::setgid(uid) != 0 || ::setuid(uid) != 0)) return 1;
    const std::string socket = "unix:" + socket_path() + ",server=on,wait=off";
    const std::string size = std::to_string(kRamBytes);
    const std::string backend = shared ? "memory-backend-memfd,id=ram,share=on,size=" + size
                                       : "memory-backend-ram,id=ram,size=" + size;
    ::execlp("qemu-system-x86_64", "qemu-system-x86_64", "-S", "-machine", "q35,accel=tcg,memory-backend=ram",
             "-object", backend.c_str(), "-m", (size + "b").c_str(), "-nodefaults", "-display", "none",
             "-qmp", socket.c_str(), "-sandbox",
             "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny", nullptr);
    return 127;
  }

  std::string socket_path() const { return folder_ + "/qmp"; }

  bool connect_qmp() {
    qmp_.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    socket_path().copy(address.sun_path, sizeof address.sun_path - 1);
    return ::connect(qmp_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  }

  std::string read_line() {
    std::string line;
    for (char c; ::recv(qmp_.get(), &c, 1, 0) == 1 && c != '\n';) line += c;
    return line;
  }

  std::string folder_ = "/tmp/colo-attach-XXXXXX";
  std::unique_ptr<ChildProcess> process_;
  UniqueFd qmp_;
};

std::string attach_error(const GuestMemory& memory) {
  try {
    make_userfaultfd_tracker(memory);
    return "none";
  } catch (const Error& error) {
    return error.code();
  }
}

// Processor time that a process has used in user mode: field 14 of proc_pid_stat(5).
std::uint64_t cpu_ticks(pid_t pid) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/stat");
  std::string text;
  std::getline(file, text);
  std::istringstream fields(
      text.substr(text.rfind(')') + 2));  // from field 3 on; the name before may hold anything
  std::string skipped;
  for (int field = 3; field < 14; ++field) fields >> skipped;
  std::uint64_t ticks = 0;
  fields >> ticks;
  return ticks;
}

// Lets the firmware run, in short epochs, until it has written in three of them. After each, a copy that is
// given only the reported pages must equal all of RAM.
bool run_firmware_and_copy(Qemu& qemu, const GuestMemory& memory, DirtyTracker& tracker) {
  WorkerPool pool(2);
  std::vector<std::byte> copy(kRamBytes), now(kRamBytes);
  memory.read(0, 0, copy);
  int epochs_with_writes = 0;
  bool wrote = false;
  for (int epoch = 0; epoch < 100 && epochs_with_writes < 3; ++epoch) {
    if (!wrote) qemu.succeed("system_reset");  // it hasn't begun yet, or has come to its end
    const std::uint64_t before = cpu_ticks(qemu.pid());
    qemu.succeed("cont");
    EXPECT_TRUE(wait_until([&] { return cpu_ticks(qemu.pid()) > before + 1; })) << "the VM doesn't run";
    qemu.succeed("stop");
    std::vector<DirtyBitmap> dirty(1, DirtyBitmap(memory.block(0).pages()));
    tracker.collect(dirty, pool);
    std::vector<PageRun> runs;
    dirty[0].append_runs(runs);
    for (const PageRun& run : runs) {
      memory.read(0, run.first * kPageSize, {&copy[run.first * kPageSize], run.count * kPageSize});
    }
    memory.read(0, 0, now);
    EXPECT_TRUE(now == copy) << "a write was missed";
    wrote = !runs.empty();
    epochs_with_writes += wrote ? 1 : 0;
  }
  return epochs_with_writes == 3;
}

struct Case {
  std::string name;
  bool shared;
  uid_t uid;
};

class AttachQemu : public ::testing::TestWithParam<Case> {};

TEST_P(AttachQemu, TracksAndLeavesNothingBehind) {
  Qemu qemu(GetParam().shared, GetParam().uid);
  const GuestMemory memory(qemu.pid(), {qemu.ram()});
  EXPECT_EQ(memory.access(0), GetParam().shared ? MemoryAccess::mapped : MemoryAccess::remote);
  const auto descriptors = open_descriptors(qemu.pid());
  for (int attachment = 0; attachment < 3; ++attachment) {
    const auto tracker = make_userfaultfd_tracker(memory);
    EXPECT_EQ(open_descriptors(qemu.pid()), descriptors);
    EXPECT_TRUE(has_userfaultfd_mappings(qemu.pid()));
    EXPECT_EQ(attach_error(memory), "ERR_COLO_UFFD_BUSY");
    tracker->protect_all();
    EXPECT_TRUE(run_firmware_and_copy(qemu, memory, *tracker)) << "the firmware wrote nothing";
  }
  EXPECT_EQ(open_descriptors(qemu.pid()), descriptors);
  EXPECT_FALSE(has_userfaultfd_mappings(qemu.pid()));
  EXPECT_NE(qemu.ask(R"({"execute":"query-status"})").find("paused"), std::string::npos);
}

TEST_P(AttachQemu, OutlivesAnAgentThatIsKilled) {
  Qemu qemu(GetParam().shared, GetParam().uid);
  const GuestMemory memory(qemu.pid(), {qemu.ram()});
  const auto descriptors = open_descriptors(qemu.pid());
  for (int i = 0; i < 3; ++i) {
    ChildProcess agent([&](int socket) {
      const auto tracker = make_userfaultfd_tracker(memory);
      tracker->protect_all();
      char end;
      return ::send(socket, "r", 1, 0) == 1 && ::recv(socket, &end, 1, 0) == 0 ? 0 : 1;
    });
    agent.receive<char>();
    EXPECT_EQ(attach_error(memory), "ERR_COLO_UFFD_BUSY");
    agent.kill();
    EXPECT_FALSE(has_userfaultfd_mappings(qemu.pid()));
    EXPECT_EQ(open_descriptors(qemu.pid()), descriptors);
    EXPECT_EQ(attach_error(memory), "none");
  }
  EXPECT_NE(qemu.ask(R"({"execute":"query-status"})").find("prelaunch"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Kinds, AttachQemu,
                         ::testing::Values(Case{"shared", true, 0}, Case{"private", false, 0},
                                           Case{"shared_of_another_user", true, 65534},
                                           Case{"private_of_another_user", false, 65534}),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace colo
