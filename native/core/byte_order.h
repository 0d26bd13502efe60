// Integers as they lie in network protocols.
#pragma once

#include <cstddef>
#include <cstdint>

namespace colo {

template <class T>
void store_big_endian(std::byte* at, T value) {
  for (std::size_t i = 0; i < sizeof(T); ++i)
    at[i] = static_cast<std::byte>(static_cast<std::uint64_t>(value) >> (8 * (sizeof(T) - 1 - i)));
}

template <class T>
T load_big_endian(const std::byte* at) {
  std::uint64_t value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) value = value << 8 | static_cast<std::uint64_t>(at[i]);
  return static_cast<T>(value);
}

}  // namespace colo
