// What a guest's write to a disk costs on its way into the log, beside its limits: the same bytes echoed by a
// plain socket, and memcpy.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/socket.h>

#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "../core/descriptors.h"
#include "../core/disk_export.h"
#include "../core/error.h"
#include "../core/nbd_protocol.h"
#include "../core/socket_io.h"

namespace colo {
namespace {

constexpr std::uint64_t kDiskBytes = 1u << 30;
constexpr std::uint32_t kWriteBytes = 4096;
constexpr std::size_t kMessageBytes = nbd::kRequestBytes + kWriteBytes;

DiskLogOptions options_of() {
  DiskLogOptions options;
  options.id = "bench";
  options.size_bytes = kDiskBytes;
  return options;
}

void make_blocking(int fd) {
  if (::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK) != 0) std::abort();
}

// `depth` writes leave, then as many answers are awaited.
void write_and_wait(
    benchmark::State& state, int fd, const std::function<void()>& after_round = [] {}) {
  const auto depth = static_cast<std::size_t>(state.range(0));
  std::vector<std::byte> requests, replies(depth * nbd::kSimpleReplyBytes);
  for (std::size_t i = 0; i < depth; ++i) {
    const auto request = nbd::Message()
                             .put(nbd::kRequestMagic)
                             .put(std::uint16_t{0})
                             .put(static_cast<std::uint16_t>(nbd::kWrite))
                             .put(static_cast<std::uint64_t>(i))
                             .put(std::uint64_t{i * 37 % 1000 * kWriteBytes})
                             .put(kWriteBytes);
    requests.insert(requests.end(), request.bytes().begin(), request.bytes().end());
    requests.resize(requests.size() + kWriteBytes);
  }
  for (auto _ : state) {
    // As QEMU sends them: a call for each.
    for (std::size_t i = 0; i < depth; ++i) {
      iovec piece = {requests.data() + i * kMessageBytes, kMessageBytes};
      send_all(system_socket_calls(), fd, {&piece, 1});
    }
    receive_all(system_socket_calls(), fd, replies);
    after_round();
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations() * depth));
}

void limit_socket_echo(benchmark::State& state) {
  auto [ours, theirs] = stream_socket_pair();
  make_blocking(ours.get());
  make_blocking(theirs.get());
  std::thread echo([&theirs = theirs] {
    std::vector<std::byte> message(kMessageBytes);
    try {
      for (;;) {
        receive_all(system_socket_calls(), theirs.get(), message);
        iovec piece = {message.data(), nbd::kSimpleReplyBytes};
        send_all(system_socket_calls(), theirs.get(), {&piece, 1});
      }
    } catch (const Error&) {
    }
  });
  write_and_wait(state, ours.get());
  ::shutdown(ours.get(), SHUT_RDWR);
  echo.join();
}
BENCHMARK(limit_socket_echo)->ArgName("depth")->Arg(1)->Arg(32)->UseRealTime();

void nbd_write(benchmark::State& state) {
  DiskExport disk(options_of(), {[] {}, [](const std::string&) { std::abort(); }});
  auto [ours, theirs] = stream_socket_pair();
  make_blocking(ours.get());
  disk.serve(std::move(theirs));
  const auto hello = nbd::Message()
                         .put(std::uint32_t{nbd::kFixedNewstyle | nbd::kNoZeroes})
                         .put(nbd::kOptionMagic)
                         .put(static_cast<std::uint32_t>(nbd::kOptionGo))
                         .put(std::uint32_t{6})
                         .put(std::uint32_t{0})
                         .put(std::uint16_t{0});
  std::vector<std::byte> bytes(hello.bytes().begin(), hello.bytes().end()), answers(18 + 32 + 34 + 20);
  iovec piece = {bytes.data(), bytes.size()};
  send_all(system_socket_calls(), ours.get(), {&piece, 1});
  receive_all(system_socket_calls(), ours.get(), answers);
  disk.log().begin_session(false);
  while (disk.log().next_differing(1u << 20).count != 0) continue;
  // A checkpoint every so often, as it would be sent.
  std::uint64_t epoch = 0, rounds = 0;
  write_and_wait(state, ours.get(), [&] {
    if (++rounds % 200 != 0) return;
    disk.log().seal(++epoch);
    (void)disk.log().take_sealed(epoch);
    disk.log().confirm(epoch);
  });
  disk.log().end_session();
}
BENCHMARK(nbd_write)->ArgName("depth")->Arg(1)->Arg(32)->UseRealTime();

void limit_memcpy(benchmark::State& state) {
  const auto bytes = static_cast<std::size_t>(state.range(0));
  // As much memory as the log goes through between two checkpoints.
  const std::vector<std::byte> data(bytes, std::byte{1});
  std::vector<std::byte> memory(8u << 20);
  std::size_t at = 0;
  for (auto _ : state) {
    if (at + bytes > memory.size()) at = 0;
    std::memcpy(memory.data() + at, data.data(), bytes);
    benchmark::ClobberMemory();
    at += bytes;
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * bytes));
}
BENCHMARK(limit_memcpy)->ArgName("bytes")->Arg(512)->Arg(4096)->Arg(65536);

// Room, the same copy into it, and the entry; a checkpoint takes it away after 8 MiB.
void log_append(benchmark::State& state) {
  const auto bytes = static_cast<std::size_t>(state.range(0));
  const std::vector<std::byte> data(bytes, std::byte{1});
  DiskLog log(options_of(), {[] {}, [](const std::string&) { std::abort(); }});
  log.begin_session(false);
  while (log.next_differing(1u << 20).count != 0) continue;
  std::uint64_t epoch = 0, logged = 0, offset = 0;
  for (auto _ : state) {
    WriteRoom room = log.reserve(bytes);
    std::size_t done = 0;
    for (const WriteRoom::Piece& piece : room.pieces) {
      if (piece.bytes.empty()) continue;
      std::memcpy(piece.bytes.data(), data.data() + done, piece.bytes.size());
      done += piece.bytes.size();
    }
    log.append(std::move(room), offset);
    offset = (offset + 37 * bytes) % (kDiskBytes - bytes);
    if ((logged += bytes) < 8u << 20) continue;
    logged = 0;
    log.seal(++epoch);
    (void)log.take_sealed(epoch);
    log.confirm(epoch);
  }
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * bytes));
}
BENCHMARK(log_append)->ArgName("bytes")->Arg(512)->Arg(4096)->Arg(65536);

}  // namespace
}  // namespace colo
