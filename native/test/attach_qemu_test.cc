// The tracker on a real QEMU: sandboxed as tightly as it allows, stopped at its first instruction.
#include <gtest/gtest.h>

#include <array>
#include <sstream>

#include "../core/dirty_tracker.h"
#include "../core/error.h"
#include "../core/process_maps.h"
#include "qemu_harness.h"

namespace colo {
namespace {

using testing::ChildProcess;
using testing::has_userfaultfd_mappings;
using testing::open_descriptors;
using testing::wait_until;

// All of it is compared again and again, so it is little; and no other mapping of QEMU has this size.
constexpr std::uint64_t kRamBytes = (6u << 20) + 8192;

// Sandboxed as tightly as it allows.
class AttachedQemu : public testing::Qemu {
 public:
  AttachedQemu(bool shared, uid_t uid) : Qemu(arguments(shared), uid) {}

  RamBlock ram() const {
    for (const Mapping& mapping : read_process_maps(pid())) {
      if (mapping.end - mapping.start == kRamBytes) return {"pc.ram", mapping.start, kRamBytes};
    }
    ADD_FAILURE() << "QEMU's RAM was not found";
    return {};
  }

 private:
  static std::vector<std::string> arguments(bool shared) {
    const std::string size = std::to_string(kRamBytes);
    return {
        "-machine",
        "q35,accel=tcg,memory-backend=ram",
        "-object",
        (shared ? "memory-backend-memfd,id=ram,share=on,size=" : "memory-backend-ram,id=ram,size=") + size,
        "-m",
        size + "b",
        "-sandbox",
        "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"};
  }
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
bool run_firmware_and_copy(AttachedQemu& qemu, const GuestMemory& memory, DirtyTracker& tracker) {
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
  AttachedQemu qemu(GetParam().shared, GetParam().uid);
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
  AttachedQemu qemu(GetParam().shared, GetParam().uid);
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
