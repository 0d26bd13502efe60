// Checks what JavaScript hands over. Every function throws argument_error() naming the argument; `name` is as
// the TypeScript declaration says.
#pragma once

#include <napi.h>

#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "../core/guest_memory.h"
#include "../core/standby_engine.h"
#include "../core/unique_fd.h"

namespace colo::addon {

// JavaScript's numbers are exact up to here.
inline constexpr std::uint64_t kIntegerMax = (std::uint64_t{1} << 53) - 1;

// One argument or one property, with the name that errors show.
struct Argument {
  Napi::Value value;
  std::string name;

  Napi::Env env() const { return value.Env(); }
  Argument property(const char* key) const;  // of an object argument

  std::uint64_t integer(std::uint64_t min = 0, std::uint64_t max = kIntegerMax) const;
  template <typename Integer>
  Integer integer_as(std::uint64_t min = 0) const {
    return static_cast<Integer>(integer(min, std::numeric_limits<Integer>::max()));
  }
  bool boolean() const;
  std::string text() const;
  // Valid while `value` is and JavaScript does not run.
  std::span<const std::uint8_t> bytes() const;
  std::string bytes(std::size_t exactly) const;
  Napi::Function function() const;
  Napi::Array array() const;
  std::uint64_t address() const;  // a bigint of at most 64 bits, not negative
  int descriptor() const { return integer_as<int>(); }
  // A descriptor of our own for the same open file, so that JavaScript may close its own at any time.
  UniqueFd duplicate() const;
  std::vector<RamBlock> ram_blocks() const;
  std::vector<PreservedRange> preserved_ranges() const;
  std::vector<StandbyDiskOptions> standby_disks() const;

  [[noreturn]] void fail(const std::string& what) const;
};

inline Argument argument(const Napi::CallbackInfo& info, std::size_t index, const char* name) {
  return {info[index], name};
}

}  // namespace colo::addon
