// What is read of QEMU: its memory map, its state, and what it wrote as its device state.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "../core/error.h"
#include "../core/process_maps.h"
#include "../core/process_watch.h"
#include "../core/unique_fd.h"
#include "../core/vmstate_mailbox.h"
#include "naive_decoders.h"
#include "targets.h"

namespace colo::fuzz {
namespace {

std::string text_of(Input input) { return {reinterpret_cast<const char*>(input.data()), input.size()}; }

constexpr std::uint64_t kFileBytes = 16384, kStateOffset = 4096, kStateBytes = 8192;
constexpr char kMachine[] = "pc-q35-7.2";

}  // namespace

Verdict process_maps(Input input) {
  try {
    for (const Mapping& mapping : parse_smaps(text_of(input), "the fuzzer's text")) {
      COLO_ASSERT(mapping.start < mapping.end);
      // Others divide by it.
      COLO_ASSERT(mapping.page_size_bytes > 0 && mapping.page_size_bytes % 4096 == 0);
    }
    return Verdict::accepted;
  } catch (const Error&) {
    return Verdict::refused;
  }
}

Verdict process_stat(Input input) {
  try {
    (void)is_exiting_by_stat(text_of(input));
    return Verdict::accepted;
  } catch (const Error&) {
    return Verdict::refused;
  }
}

// A file with a VM state area in its middle: what was checked lies there as a stream that QEMU loads, and
// nothing beside it has changed.
Verdict vmstate_mailbox(Input input) {
  static const int fd = ::memfd_create("mailbox", MFD_CLOEXEC);
  Bytes before(kFileBytes, std::byte{0x55});
  COLO_ASSERT(::pwrite(fd, before.data(), before.size(), 0) == static_cast<ssize_t>(before.size()));
  const VmstateMailbox mailbox(fd, kStateOffset, kStateBytes, kMachine);
  try {
    mailbox.check(input);
  } catch (const Error&) {
    return Verdict::refused;
  }
  mailbox.write(input);

  Bytes expected(input.begin(), input.begin() + 8);
  const auto add = [&expected](const auto& bytes) {
    for (const auto byte : bytes) expected.push_back(std::byte(byte));
  };
  add(std::string("\7\0\0\0", 4));
  expected.push_back(std::byte(std::strlen(kMachine)));
  add(std::string(kMachine));
  add(input.subspan(8));
  add(std::string("\6\0\0\0\0", 5));
  COLO_ASSERT(expected.size() <= kStateBytes);
  std::copy(expected.begin(), expected.end(), before.begin() + kStateOffset);
  Bytes after(kFileBytes);
  COLO_ASSERT(::pread(fd, after.data(), after.size(), 0) == static_cast<ssize_t>(after.size()));
  COLO_ASSERT(after == before);
  return Verdict::accepted;
}

}  // namespace colo::fuzz
