#include "arguments.h"

#include <fcntl.h>

#include <cmath>

#include "errors.h"

namespace colo::addon {

void Argument::fail(const std::string& what) const {
  throw argument_error(env(), "`" + name + "` must be " + what);
}

Argument Argument::property(const char* key) const {
  if (!value.IsObject()) fail("an object");
  return {value.As<Napi::Object>().Get(key), name + "." + key};
}

std::uint64_t Argument::integer(std::uint64_t min, std::uint64_t max) const {
  if (max > kIntegerMax) max = kIntegerMax;
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : std::nan("");
  // NaN fails every comparison.
  if (!(number >= static_cast<double>(min) && number <= static_cast<double>(max) &&
        std::trunc(number) == number)) {
    fail("an integer from " + std::to_string(min) + " to " + std::to_string(max));
  }
  return static_cast<std::uint64_t>(number);
}

bool Argument::boolean() const {
  if (!value.IsBoolean()) fail("a boolean");
  return value.As<Napi::Boolean>().Value();
}

std::string Argument::text() const {
  if (!value.IsString()) fail("a string");
  return value.As<Napi::String>().Utf8Value();
}

std::span<const std::uint8_t> Argument::bytes() const {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != napi_uint8_array)
    fail("a Uint8Array");
  const auto array = value.As<Napi::Uint8Array>();
  return {array.Data(), array.ByteLength()};
}

std::string Argument::bytes(std::size_t exactly) const {
  const std::span<const std::uint8_t> all = bytes();
  if (all.size() != exactly) fail("a Uint8Array of " + std::to_string(exactly) + " bytes");
  return {all.begin(), all.end()};
}

Napi::Function Argument::function() const {
  if (!value.IsFunction()) fail("a function");
  return value.As<Napi::Function>();
}

Napi::Array Argument::array() const {
  if (!value.IsArray()) fail("an array");
  return value.As<Napi::Array>();
}

std::uint64_t Argument::address() const {
  bool lossless = false;
  const std::uint64_t result = value.IsBigInt() ? value.As<Napi::BigInt>().Uint64Value(&lossless) : 0;
  if (!lossless) fail("a bigint from 0 to 2^64 - 1");
  return result;
}

UniqueFd Argument::duplicate() const {
  UniqueFd fd(::fcntl(descriptor(), F_DUPFD_CLOEXEC, 0));
  if (!fd) fail("an open descriptor");
  return fd;
}

std::vector<RamBlock> Argument::ram_blocks() const {
  const Napi::Array list = array();
  std::vector<RamBlock> blocks;
  for (std::uint32_t i = 0; i < list.Length(); ++i) {
    const Argument each{list.Get(i), name + "[" + std::to_string(i) + "]"};
    RamBlock block{each.property("name").text(), each.property("hostAddress").address(),
                   each.property("sizeBytes").integer(kPageSize)};
    if (block.size % kPageSize != 0) each.property("sizeBytes").fail("a multiple of 4096");
    if (block.host_address % kPageSize != 0) each.property("hostAddress").fail("a multiple of 4096");
    blocks.push_back(std::move(block));
  }
  if (blocks.empty()) fail("an array of at least one block");
  return blocks;
}

std::vector<PreservedRange> Argument::preserved_ranges() const {
  const Napi::Array list = array();
  std::vector<PreservedRange> ranges;
  for (std::uint32_t i = 0; i < list.Length(); ++i) {
    const Argument each{list.Get(i), name + "[" + std::to_string(i) + "]"};
    ranges.push_back({static_cast<std::uint32_t>(each.property("block").integer(0, UINT32_MAX)),
                      each.property("offsetBytes").integer(), each.property("sizeBytes").integer()});
  }
  return ranges;
}

std::vector<StandbyDiskOptions> Argument::standby_disks() const {
  const Napi::Array list = array();
  std::vector<StandbyDiskOptions> disks;
  for (std::uint32_t i = 0; i < list.Length(); ++i) {
    const Argument each{list.Get(i), name + "[" + std::to_string(i) + "]"};
    disks.push_back({each.property("id").text(), each.property("fd").descriptor(),
                     each.property("sizeBytes").integer(1)});
  }
  return disks;
}

}  // namespace colo::addon
