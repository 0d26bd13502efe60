#include "locked_memory.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

namespace colo {
namespace {

// OpenSSL's frames, those of an exception's way up, and as much again.
constexpr std::size_t kDeeperStackBytes = 64 << 10;

}  // namespace

LockedMemory::LockedMemory(const void* begin, std::size_t bytes)
    : begin_(begin), bytes_(bytes), errno_(::mlock(begin, bytes) == 0 ? 0 : errno) {}

LockedMemory LockedMemory::stack() {
  pthread_attr_t attributes;
  void* lowest = nullptr;
  std::size_t bytes = 0;
  if (const int error = ::pthread_getattr_np(::pthread_self(), &attributes); error != 0)
    return LockedMemory(error);
  ::pthread_attr_getstack(&attributes, &lowest, &bytes);
  ::pthread_attr_destroy(&attributes);
  const std::byte* end = static_cast<std::byte*>(lowest) + bytes;
  const auto* here = static_cast<const std::byte*>(__builtin_frame_address(0));
  const std::size_t used = static_cast<std::size_t>(end - here);
  const std::size_t wanted = std::min(bytes, used + kDeeperStackBytes);
  return LockedMemory(end - wanted, wanted);
}

LockedMemory::~LockedMemory() {
  if (errno_ == 0) ::munlock(begin_, bytes_);
}

}  // namespace colo
