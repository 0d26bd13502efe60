// A checkpoint's way onto a connection beside its limit: the same bytes sent as they are, over a local socket
// that somebody empties.
#include <benchmark/benchmark.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "../core/checkpoint_stream.h"
#include "../core/error.h"
#include "../core/unique_fd.h"

namespace colo {
namespace {

constexpr std::uint64_t kGuestPages = 65536;  // 256 MiB
constexpr std::uint64_t kDirtyPages = 3000;

class DrainedSocket {
 public:
  DrainedSocket() {
    int fds[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) std::abort();
    ours_.reset(fds[0]);
    theirs_.reset(fds[1]);
    drain_ = std::thread([this] {
      std::vector<std::byte> buffer(1u << 20);
      while (::recv(theirs_.get(), buffer.data(), buffer.size(), 0) > 0) continue;
    });
  }
  ~DrainedSocket() {
    ::shutdown(ours_.get(), SHUT_RDWR);
    drain_.join();
  }
  int fd() const { return ours_.get(); }

 private:
  UniqueFd ours_, theirs_;
  std::thread drain_;
};

std::vector<std::byte> random_bytes(std::size_t size) {
  std::vector<std::byte> bytes(size);
  std::mt19937_64 random(1);
  for (std::size_t i = 0; i < size; i += 8) {
    const std::uint64_t value = random();
    std::memcpy(bytes.data() + i, &value, 8);
  }
  return bytes;
}

void set_bytes(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kDirtyPages * kPageSize));
}

void limit_plain_send(benchmark::State& state) {
  const DrainedSocket socket;
  std::vector<std::byte> pages = random_bytes(kDirtyPages * kPageSize);
  for (auto _ : state) {
    for (std::size_t at = 0; at < pages.size(); at += 256u << 10) {
      iovec piece = {pages.data() + at, std::min<std::size_t>(256u << 10, pages.size() - at)};
      send_all(system_socket_calls(), socket.fd(), {&piece, 1});
    }
  }
  set_bytes(state);
}
BENCHMARK(limit_plain_send)->Unit(benchmark::kMillisecond)->UseRealTime();

// Encodes, hashes and sends 3,000 captured pages of which `changed_lines` lines differ from the shadow.
void send_checkpoint(benchmark::State& state) {
  const auto changed_lines = static_cast<std::size_t>(state.range(0));
  const DrainedSocket socket;
  StreamWriter writer(system_socket_calls(), socket.fd(), 1);
  std::vector<std::byte> captured = random_bytes(kDirtyPages * kPageSize);
  std::vector<std::byte> shadow(kGuestPages * kPageSize);
  const std::vector<std::byte> vmstate(30000);
  const auto base = [&](std::uint64_t i) { return shadow.data() + i * 21 % kGuestPages * kPageSize; };
  for (std::uint64_t i = 0; i < kDirtyPages; ++i)
    std::memcpy(base(i), captured.data() + i * kPageSize, kPageSize);
  std::uint64_t epoch = 0;
  for (auto _ : state) {
    state.PauseTiming();
    for (std::uint64_t i = 0; i < kDirtyPages; ++i) {
      for (std::size_t line = 0; line < changed_lines; ++line)
        captured[i * kPageSize + line * kLineSize] ^= std::byte{1};
    }
    state.ResumeTiming();
    PageCounts counts;
    writer.begin_epoch(++epoch);
    writer.send_vmstate(vmstate);
    for (std::uint64_t i = 0; i < kDirtyPages; ++i) {
      encode_page(writer.entries(), best_page_kernel(), 0, i * 21, captured.data() + i * kPageSize, base(i),
                  counts);
    }
    writer.end_epoch(counts.on_wire());
  }
  set_bytes(state);
}
BENCHMARK(send_checkpoint)
    ->ArgName("changed_lines")
    ->Arg(1)
    ->Arg(8)
    ->Arg(64)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

// The checksum alone, over what lies in the second-level cache as it does after encoding.
void hash_payload(benchmark::State& state) {
  const std::vector<std::byte> payload = random_bytes(256u << 10);
  EpochDigest digest;
  for (auto _ : state) digest.add_payload(payload);
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * payload.size()));
}
BENCHMARK(hash_payload);

}  // namespace
}  // namespace colo
