#include "page_applier.h"

#include <algorithm>
#include <utility>

#include "page_delta.h"

namespace colo {
namespace {

constexpr std::size_t kWritesMax = 1024;  // what one process_vm_writev(2) takes
constexpr std::size_t kZeroBytes = 256u << 10;
constexpr std::size_t kReadPages = 64;

const std::byte zero_bytes[kZeroBytes] = {};

}  // namespace

PageApplier::PageApplier(const GuestMemory& memory) : memory_(memory), read_(kReadPages * kPageSize) {
  writes_.reserve(kWritesMax);
}

void PageApplier::apply(std::span<const std::byte> payload) {
  decode(payload, [this](std::uint16_t block, PageRun run) {
    add_zeros(block, run.first * kPageSize, run.count * kPageSize);
  });
}

void PageApplier::apply_first_copy(std::span<const std::byte> payload) {
  decode(payload, [this](std::uint16_t block, PageRun run) { clear_where_needed(block, run); });
}

void PageApplier::decode(std::span<const std::byte> payload,
                         std::function<void(std::uint16_t, PageRun)> zero_run) {
  writes_.clear();  // what a failed call left behind points into a payload that may be gone
  decode_entries(
      payload, {[this](std::uint16_t block, MemoryWrite write) { add(block, write); }, std::move(zero_run)});
  flush();
}

void PageApplier::add(std::uint16_t block, MemoryWrite write) {
  if (block != block_ || writes_.size() == kWritesMax) flush();
  block_ = block;
  writes_.push_back(write);
}

void PageApplier::add_zeros(std::uint16_t block, std::uint64_t offset, std::uint64_t length) {
  while (length > 0) {
    const std::size_t piece = std::min<std::uint64_t>(length, kZeroBytes);
    add(block, {offset, zero_bytes, piece});
    offset += piece;
    length -= piece;
  }
}

void PageApplier::clear_where_needed(std::uint16_t block, PageRun run) {
  const PageKernel& kernel = best_page_kernel();
  for (std::uint64_t done = 0; done < run.count; done += kReadPages) {
    const std::uint64_t pages = std::min<std::uint64_t>(kReadPages, run.count - done);
    memory_.read(block, (run.first + done) * kPageSize, std::span(read_).first(pages * kPageSize));
    for (std::uint64_t page = 0; page < pages; ++page) {
      if (!kernel.is_zero(read_.data() + page * kPageSize))
        add_zeros(block, (run.first + done + page) * kPageSize, kPageSize);
    }
  }
}

void PageApplier::flush() {
  if (!writes_.empty()) memory_.write(block_, writes_);
  writes_.clear();
}

}  // namespace colo
