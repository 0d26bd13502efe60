// libFuzzer's entry into one target, which the build names.
#include <cstdint>

#include "targets.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  (void)colo::fuzz::COLO_FUZZ_TARGET({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
