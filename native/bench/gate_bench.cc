// What the output gate costs: frames through it, held and released, beside a plain copy of the same bytes
// through two sockets.
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <sys/socket.h>

#include <string>
#include <thread>

#include "../core/descriptors.h"
#include "../core/error.h"
#include "../core/output_gate.h"

namespace colo {
namespace {

constexpr std::int64_t kEpochBytes = 8 << 20;

std::string epoch_of_frames(std::int64_t frame_bytes) {
  std::string frame(8 + frame_bytes, 'x');
  for (int i = 0; i < 4; ++i) {
    frame[i] = static_cast<char>(frame_bytes >> (24 - 8 * i));
    frame[4 + i] = i == 3 ? 12 : 0;
  }
  std::string epoch;
  while (epoch.size() + frame.size() <= kEpochBytes) epoch += frame;
  return epoch;
}

void make_blocking(int fd) { COLO_ASSERT(::fcntl(fd, F_SETFL, ::fcntl(fd, F_GETFL) & ~O_NONBLOCK) == 0); }

void send_all(int fd, const std::string& bytes) {
  for (std::size_t at = 0; at < bytes.size();) {
    const ssize_t sent = ::send(fd, bytes.data() + at, bytes.size() - at, 0);
    COLO_ASSERT(sent > 0);
    at += static_cast<std::size_t>(sent);
  }
}

void receive_all(int fd, std::string& into) {
  for (std::size_t at = 0; at < into.size();) {
    const ssize_t got = ::recv(fd, into.data() + at, into.size() - at, 0);
    COLO_ASSERT(got > 0);
    at += static_cast<std::size_t>(got);
  }
}

struct Nic {
  std::pair<UniqueFd, UniqueFd> held = stream_socket_pair(), release = stream_socket_pair();
  Nic() {
    make_blocking(held.first.get());
    make_blocking(release.first.get());
  }
};

// An epoch's frames in, sealed, released and read back: what lies between two checkpoints of a busy sender.
void BM_HoldAndRelease(benchmark::State& state) {
  Nic nic;
  OutputGate gate({}, {[] {}, [] {}, [](const char*) {}});
  gate.add_port(nic.held.second.release(), nic.release.second.release());
  const std::string epoch_bytes = epoch_of_frames(state.range(0));
  std::string out(epoch_bytes.size(), 0);
  std::uint64_t epoch = 1;
  gate.seal(epoch);
  for (auto _ : state) {
    send_all(nic.held.first.get(), epoch_bytes);
    gate.seal(++epoch);
    gate.release(epoch);
    receive_all(nic.release.first.get(), out);
  }
  COLO_ASSERT(out == epoch_bytes);
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(epoch_bytes.size()));
}
BENCHMARK(BM_HoldAndRelease)->Arg(64)->Arg(1514)->Arg(65550)->UseRealTime()->Unit(benchmark::kMillisecond);

// The limit: the same bytes through the same two sockets, moved by a thread that looks at nothing and holds
// nothing.
void BM_PlainRelay(benchmark::State& state) {
  Nic nic;
  const std::string epoch_bytes = epoch_of_frames(state.range(0));
  std::string out(epoch_bytes.size(), 0);
  make_blocking(nic.held.second.get());
  make_blocking(nic.release.second.get());
  std::thread relay([&] {
    std::string buffer(64 * 1024, 0);
    for (;;) {
      const ssize_t got = ::recv(nic.held.second.get(), buffer.data(), buffer.size(), 0);
      if (got <= 0) return;
      send_all(nic.release.second.get(), buffer.substr(0, static_cast<std::size_t>(got)));
    }
  });
  for (auto _ : state) {
    std::thread sender([&] { send_all(nic.held.first.get(), epoch_bytes); });
    receive_all(nic.release.first.get(), out);
    sender.join();
  }
  ::shutdown(nic.held.first.get(), SHUT_WR);
  relay.join();
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(epoch_bytes.size()));
}
BENCHMARK(BM_PlainRelay)->Arg(64)->Arg(1514)->Arg(65550)->UseRealTime()->Unit(benchmark::kMillisecond);

// What the gate adds to a pause: sealing when `range` frames of 1,514 bytes are still in the socket.
void BM_Seal(benchmark::State& state) {
  Nic nic;
  OutputGate gate({}, {[] {}, [] {}, [](const char*) {}});
  gate.add_port(nic.held.second.release(), nic.release.second.release());
  const std::string all = epoch_of_frames(1514);
  const std::string some = all.substr(0, static_cast<std::size_t>(state.range(0)) * 1522);
  std::string out(some.size(), 0);
  std::uint64_t epoch = 1;
  gate.seal(epoch);
  for (auto _ : state) {
    state.PauseTiming();
    send_all(nic.held.first.get(), some);
    state.ResumeTiming();
    gate.seal(++epoch);
    state.PauseTiming();
    gate.release(epoch);
    receive_all(nic.release.first.get(), out);
    state.ResumeTiming();
  }
}
BENCHMARK(BM_Seal)->Arg(0)->Arg(16)->Arg(256)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace colo
