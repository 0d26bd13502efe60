// Memory that stays where it is, for a thread that must not wait for a host short of it.
#pragma once

#include <cstddef>

namespace colo {

inline constexpr std::size_t kMemoryPageBytes = 4096;

// The whole pages that hold `bytes` from `begin` on, locked (mlock(2)) until destruction; they should hold
// nothing else, since locks don't count. Without the privilege they are memory like all other.
class LockedMemory {
 public:
  LockedMemory(const void* begin, std::size_t bytes);
  // The calling thread's stack: all that is in use, and what the calls from here on may take.
  static LockedMemory stack();
  LockedMemory(const LockedMemory&) = delete;
  LockedMemory& operator=(const LockedMemory&) = delete;
  ~LockedMemory();

  int sys_errno() const { return errno_; }  // 0: it is locked

 private:
  explicit LockedMemory(int failure) : errno_(failure) {}

  const void* begin_ = nullptr;
  std::size_t bytes_ = 0;
  int errno_;
};

}  // namespace colo
