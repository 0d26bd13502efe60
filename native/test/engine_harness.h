// Guests in child processes, and the two engines around them, for tests of the whole path.
#pragma once

#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <condition_variable>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "../core/checkpoint_stream.h"
#include "../core/error.h"
#include "../core/guest_memory.h"
#include "../core/standby_engine.h"
#include "../core/unique_fd.h"
#include "child_process.h"

namespace colo::testing {

using Bytes = std::vector<std::byte>;

inline constexpr std::uint64_t kMailboxOffset = 65536, kMailboxBytes = 1u << 20;
inline const std::string kTestMachine = "pc-q35-7.2";
inline const std::string kTestToken = "0123456789abcdef";

// A guest that writes on command, and beside it a model of its RAM that the test keeps by itself.
class ModelledGuest {
 public:
  struct Block {
    std::uint64_t pages;
    bool shared;
  };

  explicit ModelledGuest(const std::vector<Block>& blocks)
      : process_([&blocks](int socket) { return serve(blocks, socket); }) {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      blocks_.push_back(
          {"block" + std::to_string(i), process_.receive<std::uint64_t>(), blocks[i].pages * kPageSize});
      model_.emplace_back(blocks[i].pages * kPageSize);
    }
  }

  pid_t pid() const { return process_.pid(); }
  const std::vector<RamBlock>& blocks() const { return blocks_; }
  const std::vector<Bytes>& model() const { return model_; }
  void kill() { process_.kill(); }

  // Fills `length` bytes with what follows from `seed`; zeros for 0.
  void scribble(std::uint64_t block, std::uint64_t offset, std::uint64_t length, std::uint64_t seed) {
    const Command command = {block, offset, length, seed};
    fill(model_[block].data(), command);
    process_.send(command);
    EXPECT_EQ(process_.receive<char>(), 1);
  }

  // What guests do: a few bytes here and there, whole pages, pages cleared.
  void live(std::mt19937_64& random, unsigned writes) {
    for (; writes > 0; --writes) {
      const std::uint64_t block = random() % blocks_.size(), pages = blocks_[block].pages();
      const std::uint64_t page = random() % pages * kPageSize;
      switch (random() % 4) {
        case 0:
          scribble(block, page, kPageSize, 0);
          break;
        case 1:
          scribble(block, page,
                   kPageSize * (random() % std::min<std::uint64_t>(3, pages - page / kPageSize) + 1),
                   random());
          break;
        default:
          scribble(block, page + random() % (kPageSize - 200), random() % 200 + 1, random());
          break;
      }
    }
  }

 private:
  struct Command {
    std::uint64_t block, offset, length, seed;
  };

  // Most of these tests' time is spent here, ten times as much under ThreadSanitizer.
  __attribute__((no_sanitize("thread"))) static void fill(std::byte* ram, const Command& command) {
    std::uint64_t state = command.seed;
    for (std::uint64_t i = 0; i < command.length; ++i) {
      state = state * 6364136223846793005 + (command.seed == 0 ? 0 : 1442695040888963407);
      ram[command.offset + i] = std::byte(state >> 56);
    }
  }

  static int serve(const std::vector<Block>& blocks, int socket) {
    std::vector<std::byte*> ram;
    for (const Block& block : blocks) {
      const std::size_t size = block.pages * kPageSize;
      const int fd = block.shared ? ::memfd_create("guest-ram", 0) : -1;
      if (block.shared && ::ftruncate(fd, static_cast<off_t>(size)) != 0) return 90;
      const int flags = block.shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
      void* const at = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, fd, 0);
      if (at == MAP_FAILED) return 91;
      ram.push_back(static_cast<std::byte*>(at));
      const auto address = reinterpret_cast<std::uint64_t>(at);
      if (::send(socket, &address, sizeof address, 0) != sizeof address) return 92;
    }
    for (Command command; ::recv(socket, &command, sizeof command, 0) == sizeof command;) {
      fill(ram[command.block], command);
      const char done = 1;
      if (::send(socket, &done, sizeof done, 0) != sizeof done) return 93;
    }
    return 0;
  }

  ChildProcess process_;
  std::vector<RamBlock> blocks_;
  std::vector<Bytes> model_;
};

inline std::vector<Bytes> ram_of(const ModelledGuest& guest) {
  const GuestMemory memory(guest.pid(), guest.blocks());
  std::vector<Bytes> ram;
  for (std::size_t i = 0; i < memory.block_count(); ++i) {
    ram.emplace_back(memory.block(i).size);
    memory.read(i, 0, ram.back());
  }
  return ram;
}

// Of the same shape, as all of these are; names the first page that differs.
inline ::testing::AssertionResult same_ram(const std::vector<Bytes>& a, const std::vector<Bytes>& b) {
  for (std::size_t block = 0; block < a.size(); ++block) {
    for (std::size_t at = 0; at < a[block].size(); at += kPageSize) {
      if (std::memcmp(a[block].data() + at, b[block].data() + at, kPageSize) == 0) continue;
      return ::testing::AssertionFailure()
             << "page " << at / kPageSize << " of block " << block << " differs";
    }
  }
  return ::testing::AssertionSuccess();
}

// The outcome of one asynchronous call.
template <class Result = int>
class Outcome {
 public:
  std::function<void(const Error*, Result)> done() {
    return [this](const Error* error, Result result) { set(error, result); };
  }
  std::function<void(const Error*)> plain_done() {
    return [this](const Error* error) { set(error, Result()); };
  }
  // Empty when it went well, else the error's code.
  std::string wait() {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::seconds(20), [this] { return code_.has_value(); }))
      return "never ended";
    return *code_;
  }
  bool ended() {
    const std::lock_guard lock(mutex_);
    return code_.has_value();
  }
  const std::string& what() const { return what_; }
  const Result& result() const { return result_; }

 private:
  void set(const Error* error, Result result) {
    const std::lock_guard lock(mutex_);
    EXPECT_FALSE(code_) << "called twice";
    code_ = error == nullptr ? "" : error->code();
    what_ = error == nullptr ? "" : error->what();
    result_ = result;
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<std::string> code_;
  std::string what_;
  Result result_{};
};

// A standby engine around a guest, a mailbox in a memfd, and a record of its events.
class TestStandby {
 public:
  explicit TestStandby(const ModelledGuest& guest, std::uint64_t staging_limit_bytes = 0,
                       std::vector<PreservedRange> preserved = {}, std::vector<StandbyDiskOptions> disks = {})
      : mailbox_(::memfd_create("mailbox", MFD_CLOEXEC)) {
    StandbyOptions options;
    options.pid = guest.pid();
    options.blocks = guest.blocks();
    options.mailbox_fd = mailbox_.get();
    options.mailbox_state_offset = kMailboxOffset;
    options.mailbox_state_bytes = kMailboxBytes;
    options.machine = kTestMachine;
    options.staging_limit_bytes = staging_limit_bytes;
    options.preserved = std::move(preserved);
    options.disks = std::move(disks);
    StandbyEngine::Events events;
    events.staged = [this](StagedCheckpoint staged) {
      const std::lock_guard lock(mutex_);
      staged_.push_back(staged);
      changed_.notify_all();
    };
    events.failed = [this](const Error& error) {
      const std::lock_guard lock(mutex_);
      failures_.push_back(std::string(error.code()) + ": " + error.what());
      changed_.notify_all();
    };
    engine = std::make_unique<StandbyEngine>(options, events);
  }

  ~TestStandby() { engine.reset(); }  // its threads use everything below

  // Waits until `epoch` is the last one staged; false when the session fails or nothing comes.
  bool wait_staged(std::uint64_t epoch) {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(20), [&] { return !failures_.empty() || is_staged(epoch); });
    return is_staged(epoch);
  }
  // The session's failure, waited for.
  std::string wait_failure() {
    std::unique_lock lock(mutex_);
    changed_.wait_for(lock, std::chrono::seconds(20), [this] { return !failures_.empty(); });
    return failures_.empty() ? "no failure" : failures_.front();
  }
  std::vector<StagedCheckpoint> staged() {
    const std::lock_guard lock(mutex_);
    return staged_;
  }
  std::size_t failures() {
    const std::lock_guard lock(mutex_);
    return failures_.size();
  }
  void forget_events() {
    const std::lock_guard lock(mutex_);
    staged_.clear();
    failures_.clear();
  }

  std::string commit(std::uint64_t epoch, CommitResult* result = nullptr) {
    Outcome<CommitResult> outcome;
    engine->commit(epoch, outcome.done());
    const std::string code = outcome.wait();
    if (result != nullptr) *result = outcome.result();
    return code;
  }
  std::string sync_disks() {
    Outcome<> outcome;
    engine->sync_disks(outcome.plain_done());
    return outcome.wait();
  }

  // The device state that the mailbox holds, without what was added to it.
  std::string mailbox_vmstate(std::size_t length) const {
    std::string read(length + 5 + kTestMachine.size(), '\0');
    if (::pread(mailbox_.get(), read.data(), read.size(), kMailboxOffset) !=
        static_cast<ssize_t>(read.size()))
      return "";
    return read.substr(0, 8) + read.substr(8 + 5 + kTestMachine.size());
  }
  bool mailbox_untouched() const { return ::lseek(mailbox_.get(), 0, SEEK_END) == 0; }

  std::unique_ptr<StandbyEngine> engine;

 private:
  bool is_staged(std::uint64_t epoch) const { return !staged_.empty() && staged_.back().epoch == epoch; }

  UniqueFd mailbox_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<StagedCheckpoint> staged_;
  std::vector<std::string> failures_;
};

// The primary's end of a bulk connection to an engine, for tests that make the frames by themselves.
class TestConnection {
 public:
  TestConnection(StandbyEngine& engine, std::uint16_t index, std::uint16_t connections,
                 std::uint64_t generation, const std::string& token = kTestToken) {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) std::abort();
    fd_.reset(fds[0]);
    const auto preface = encode_preface({token, generation, index, connections});
    engine.add_connection(Connection(UniqueFd(fds[1])),
                          {reinterpret_cast<const char*>(preface.data()), preface.size()});
  }

  // Whole, or as far as the engine reads.
  void send(std::span<const std::byte> bytes) {
    iovec piece = {const_cast<std::byte*>(bytes.data()), bytes.size()};
    try {
      send_all(system_socket_calls(), fd_.get(), {&piece, 1});
    } catch (const Error& error) {
      EXPECT_EQ(error.sys_errno(), EPIPE);
    }
  }
  // Throws ERR_COLO_LINK when the engine has closed it.
  Bytes receive(std::size_t length) {
    Bytes bytes(length);
    receive_all(system_socket_calls(), fd_.get(), bytes);
    return bytes;
  }
  // Whether the engine has taken everything out of the socket.
  bool all_read() const {
    int waiting = 0;
    EXPECT_EQ(::ioctl(fd_.get(), SIOCOUTQ, &waiting), 0);
    return waiting == 0;
  }
  void close() { fd_.reset(); }

 private:
  UniqueFd fd_;
};

inline std::string vmstate_of(std::uint64_t epoch, std::size_t length) {
  std::string vmstate("QEVM\0\0\0\3", 8);
  while (vmstate.size() < length) vmstate += "device state of epoch " + std::to_string(epoch) + ". ";
  return vmstate.substr(0, length);
}

}  // namespace colo::testing
