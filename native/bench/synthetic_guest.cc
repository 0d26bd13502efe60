// A process that stands in for QEMU where a real guest would be too large or too many: RAM of the size that
// the first argument gives in MiB (private, or shared with "shared" as the second), every page of it
// populated. Prints its address first, then obeys lines on standard input, one answer each:
//   write PAGES      8 bytes in each of PAGES random pages; answered by "ok"
//   copy PAGES N     N times: writes PAGES random pages, then copies them in a plain loop, as one thread with
//                    nothing else to do would; answered by the median of the copies in nanoseconds
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

namespace {

constexpr std::uint64_t kPageBytes = 4096;

std::byte* map(std::uint64_t bytes, int flags) {
  void* const found = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
  if (found == MAP_FAILED) {
    std::perror("mmap");
    std::exit(1);
  }
  return static_cast<std::byte*>(found);
}

class Guest {
 public:
  Guest(std::uint64_t pages, int flags) : pages_(pages), ram_(map(pages * kPageBytes, flags)) {
    // Not zero: a page that reads as zeros costs the codec less than any other.
    for (std::uint64_t i = 0; i < pages; ++i) std::memset(ram_ + i * kPageBytes, 1, 64);
  }

  const void* address() const { return ram_; }

  void write(std::uint64_t count) {
    for (std::uint64_t i = 0; i < count; ++i) write_one(random_() % pages_);
  }

  std::int64_t median_copy_ns(std::uint64_t count, std::uint64_t times) {
    std::vector<std::byte> out(count * kPageBytes);
    std::vector<std::uint64_t> dirty(count);
    std::vector<std::int64_t> took;
    for (std::uint64_t i = 0; i < times; ++i) {
      for (std::uint64_t& page : dirty) write_one(page = random_() % pages_);
      std::sort(dirty.begin(), dirty.end());
      const auto began = std::chrono::steady_clock::now();
      for (std::uint64_t at = 0; at < count; ++at)
        std::memcpy(out.data() + at * kPageBytes, ram_ + dirty[at] * kPageBytes, kPageBytes);
      took.push_back((std::chrono::steady_clock::now() - began).count());
    }
    std::sort(took.begin(), took.end());
    return took.empty() ? 0 : took[took.size() / 2];
  }

 private:
  void write_one(std::uint64_t page) {
    const std::uint64_t value = random_();
    std::memcpy(ram_ + page * kPageBytes + value % 512 * 8, &value, sizeof value);
  }

  std::uint64_t pages_;
  std::byte* ram_;
  std::mt19937_64 random_{1};
};

}  // namespace

int main(int argc, char** argv) {
  const std::uint64_t mebibytes = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
  if (mebibytes == 0) return 64;
  const bool shared = argc > 2 && std::strcmp(argv[2], "shared") == 0;
  Guest guest(mebibytes * 256, shared ? MAP_SHARED : MAP_PRIVATE);
  std::printf("%" PRIuPTR "\n", reinterpret_cast<std::uintptr_t>(guest.address()));
  std::fflush(stdout);
  for (char line[128]; std::fgets(line, sizeof line, stdin) != nullptr;) {
    std::uint64_t pages = 0, times = 0;
    if (std::sscanf(line, "write %" SCNu64, &pages) == 1) {
      guest.write(pages);
      std::puts("ok");
    } else if (std::sscanf(line, "copy %" SCNu64 " %" SCNu64, &pages, &times) == 2) {
      std::printf("%" PRId64 "\n", guest.median_copy_ns(pages, times));
    } else {
      return 64;
    }
    std::fflush(stdout);
  }
}
