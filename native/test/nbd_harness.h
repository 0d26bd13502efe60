// Both ends of NBD, for tests: a client that writes to an export as QEMU's mirror does, and qemu-nbd in front
// of a file.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <array>
#include <cstring>
#include <deque>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "../core/descriptors.h"
#include "../core/disk_export.h"
#include "../core/error.h"
#include "../core/nbd_protocol.h"
#include "../core/socket_io.h"
#include "../core/unique_fd.h"
#include "child_process.h"

namespace colo::testing {

// A pair of which one end goes to the export.
inline UniqueFd served_socket(DiskExport& disk) {
  auto [ours, theirs] = stream_socket_pair();
  disk.serve(std::move(theirs));
  return std::move(ours);
}

// Throws ERR_COLO_LINK when the other end closes.
class NbdWriter {
 public:
  explicit NbdWriter(UniqueFd socket) : socket_(std::move(socket)) {
    (void)receive(18);
    send(nbd::Message()
             .put(std::uint32_t{nbd::kFixedNewstyle | nbd::kNoZeroes})
             .put(nbd::kOptionMagic)
             .put(static_cast<std::uint32_t>(nbd::kOptionGo))
             .put(std::uint32_t{6})
             .put(std::uint32_t{0})
             .put(std::uint16_t{0})
             .bytes());
    for (;;) {
      const auto header = receive(20);
      (void)receive(load_big_endian<std::uint32_t>(header.data() + 16));
      const auto type = load_big_endian<std::uint32_t>(header.data() + 12);
      if (type == nbd::kReplyAck) return;
      if (type != nbd::kReplyInfo) throw Error("ERR_COLO_NBD", 0, "GO was refused");
    }
  }

  // The error that it answers with, or 0.
  std::uint32_t request(std::uint16_t command, std::uint64_t offset, std::uint64_t length,
                        std::span<const std::byte> data = {}, std::uint16_t flags = 0) {
    ask(command, offset, length, data, flags);
    return answer();
  }
  void ask(std::uint16_t command, std::uint64_t offset, std::uint64_t length,
           std::span<const std::byte> data = {}, std::uint16_t flags = 0) {
    send(nbd::Message()
             .put(nbd::kRequestMagic)
             .put(flags)
             .put(command)
             .put(next_handle_++)
             .put(offset)
             .put(static_cast<std::uint32_t>(length))
             .put(data)
             .bytes());
  }
  // Answers come in order.
  std::uint32_t answer() {
    const auto reply = receive(nbd::kSimpleReplyBytes);
    EXPECT_EQ(load_big_endian<std::uint32_t>(reply.data()), nbd::kSimpleReplyMagic);
    EXPECT_EQ(load_big_endian<std::uint64_t>(reply.data() + 8), answered_++);
    return load_big_endian<std::uint32_t>(reply.data() + 4);
  }
  void leave() {
    send(nbd::Message()
             .put(nbd::kRequestMagic)
             .put(std::uint16_t{0})
             .put(std::uint16_t{nbd::kDisconnect})
             .put(std::uint64_t{0})
             .put(std::uint64_t{0})
             .put(std::uint32_t{0})
             .bytes());
  }
  void cut() { socket_.reset(); }

  void send(std::span<const std::byte> bytes) {
    iovec piece = {const_cast<std::byte*>(bytes.data()), bytes.size()};
    send_all(system_socket_calls(), socket_.get(), {&piece, 1}, "the test's end");
  }
  std::vector<std::byte> receive(std::size_t length) {
    std::vector<std::byte> bytes(length);
    receive_all(system_socket_calls(), socket_.get(), bytes, "the test's end");
    return bytes;
  }

 private:
  UniqueFd socket_;
  std::uint64_t next_handle_ = 0, answered_ = 0;
};

// A folder that goes with it.
class TestFolder {
 public:
  TestFolder() {
    if (::mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~TestFolder() { std::filesystem::remove_all(path_); }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_ = std::filesystem::temp_directory_path() / "colo-test-XXXXXX";
};

// qemu-nbd, serving `file` until it is destroyed; any number of clients.
class QemuNbd {
 public:
  QemuNbd(std::string file, std::string socket, std::vector<std::string> more = {})
      : socket_(std::move(socket)), process_([&, file](int) {
          std::vector<std::string> words = {"qemu-nbd", "-t", "-e", "8", "-f", "raw", "-k", socket_};
          words.insert(words.end(), more.begin(), more.end());
          words.push_back(file);
          std::vector<char*> pointers;
          for (std::string& word : words) pointers.push_back(word.data());
          pointers.push_back(nullptr);
          ::execvp("qemu-nbd", pointers.data());
          return 127;
        }) {}

  UniqueFd connect() {
    UniqueFd fd;
    EXPECT_TRUE(wait_until([&] {
      try {
        fd = connect_unix(socket_);
      } catch (const Error&) {
      }
      return static_cast<bool>(fd);
    })) << "is qemu-nbd (package qemu-utils) installed?";
    return fd;
  }
  pid_t pid() const { return process_.pid(); }
  void kill() { process_.kill(); }

 private:
  std::string socket_;
  ChildProcess process_;
};

}  // namespace colo::testing
