#include "page_delta.h"

#include <bit>
#include <cstring>
#include <limits>
#include <string>

#include "error.h"

static_assert(std::endian::native == std::endian::little, "page entries are little-endian on the wire");

namespace colo {
namespace {

constexpr std::size_t kDeltaBytesMax =
    sizeof(EntryHeader) + sizeof(std::uint64_t) + (kLinesPerPage - 1) * kLineSize;
constexpr std::size_t kEntryBytesMax = sizeof(EntryHeader) + kPageSize;
static_assert(kDeltaBytesMax < kEntryBytesMax);  // a delta of 63 lines is still shorter than the whole page

template <class T>
T load(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

void copy_lines(std::byte* to, const std::byte* from, std::uint64_t mask) {
  for (; mask != 0; mask &= mask - 1) {
    const std::size_t offset = static_cast<std::size_t>(std::countr_zero(mask)) * kLineSize;
    std::memcpy(to + offset, from + offset, kLineSize);
  }
}

}  // namespace

PageCounts& PageCounts::operator+=(const PageCounts& other) {
  zero += other.zero;
  unchanged += other.unchanged;
  delta += other.delta;
  raw += other.raw;
  return *this;
}

EntryWriter::EntryWriter(std::size_t payload_bytes_max, std::size_t pieces_max)
    : payload_bytes_max_(payload_bytes_max),
      pieces_max_(pieces_max),
      own_(std::make_unique_for_overwrite<std::byte[]>(payload_bytes_max)) {
  COLO_ASSERT(payload_bytes_max >= kEntryBytesMax && pieces_max >= 2);
  pieces_.reserve(pieces_max);
}

bool EntryWriter::has_room() const {
  // An entry takes at most two pieces: its header (with what goes before it in our own buffer) and its pages.
  return payload_bytes_ + kEntryBytesMax <= payload_bytes_max_ && pieces_.size() + 2 <= pieces_max_;
}

void EntryWriter::clear() {
  own_used_ = 0;
  payload_bytes_ = 0;
  pieces_.clear();
  refers_to_pages_ = false;
  last_ = nullptr;
}

void EntryWriter::add_own_piece(std::byte* at, std::size_t bytes) {
  const bool continues =
      !pieces_.empty() && static_cast<std::byte*>(pieces_.back().iov_base) + pieces_.back().iov_len == at;
  if (continues) {
    pieces_.back().iov_len += bytes;
  } else {
    pieces_.push_back({at, bytes});
  }
  own_used_ += bytes;
  payload_bytes_ += bytes;
}

EntryHeader* EntryWriter::begin_entry(EntryKind kind, std::uint16_t block, std::uint64_t page) {
  COLO_ASSERT(has_room());
  std::byte* at = own_.get() + own_used_;
  last_ = new (at) EntryHeader{kind, block, 1, page};
  add_own_piece(at, sizeof(EntryHeader));
  return last_;
}

bool EntryWriter::extends_last(EntryKind kind, std::uint16_t block, std::uint64_t page) const {
  return last_ != nullptr && last_->kind == kind && last_->block == block &&
         last_->page + last_->count == page && last_->count < std::numeric_limits<std::uint32_t>::max();
}

void EntryWriter::add_zero(std::uint16_t block, std::uint64_t page) {
  if (extends_last(EntryKind::zero, block, page)) {
    ++last_->count;
  } else {
    begin_entry(EntryKind::zero, block, page);
  }
}

void EntryWriter::add_delta(std::uint16_t block, std::uint64_t page, const std::byte* data,
                            std::uint64_t mask) {
  COLO_ASSERT(mask != 0 && std::popcount(mask) < static_cast<int>(kLinesPerPage));
  begin_entry(EntryKind::delta, block, page);
  std::byte* const body = own_.get() + own_used_;
  std::memcpy(body, &mask, sizeof mask);
  std::byte* at = body + sizeof mask;
  for (std::uint64_t rest = mask; rest != 0; rest &= rest - 1, at += kLineSize) {
    std::memcpy(at, data + static_cast<std::size_t>(std::countr_zero(rest)) * kLineSize, kLineSize);
  }
  add_own_piece(body, static_cast<std::size_t>(at - body));
}

void EntryWriter::add_raw(std::uint16_t block, std::uint64_t page, const std::byte* data) {
  COLO_ASSERT(has_room());
  const bool extends = extends_last(EntryKind::raw, block, page);
  if (extends) {
    ++last_->count;
  } else {
    begin_entry(EntryKind::raw, block, page);
  }
  iovec& piece = pieces_.back();
  if (extends && static_cast<const std::byte*>(piece.iov_base) + piece.iov_len == data) {
    piece.iov_len += kPageSize;
  } else {
    pieces_.push_back({const_cast<std::byte*>(data), kPageSize});
  }
  payload_bytes_ += kPageSize;
  refers_to_pages_ = true;
}

void encode_page(EntryWriter& out, const PageKernel& kernel, std::uint16_t block, std::uint64_t page,
                 const std::byte* data, std::byte* base, PageCounts& counts) {
  std::uint64_t mask = ~std::uint64_t{0};
  if (base != nullptr) {
    mask = kernel.changed_lines(data, base);
    if (mask == 0) {
      ++counts.unchanged;
      return;
    }
    copy_lines(base, data, mask);
  }
  if (kernel.is_zero(data)) {
    out.add_zero(block, page);
    ++counts.zero;
  } else if (mask != ~std::uint64_t{0}) {
    out.add_delta(block, page, data, mask);
    ++counts.delta;
  } else {
    out.add_raw(block, page, data);
    ++counts.raw;
  }
}

void encode_first_copy(EntryWriter& out, const PageKernel& kernel, std::uint16_t block, std::uint64_t page,
                       const std::byte* data, std::byte* base, PageCounts& counts) {
  const bool zero = kernel.is_zero(data);
  if (base != nullptr && !(zero && kernel.is_zero(base))) std::memcpy(base, data, kPageSize);
  if (zero) {
    out.add_zero(block, page);
    ++counts.zero;
  } else {
    out.add_raw(block, page, data);
    ++counts.raw;
  }
}

std::uint64_t validate_entries(std::span<const std::byte> payload, std::span<const std::uint64_t> block_pages,
                               bool deltas_allowed) {
  std::uint64_t pages = 0;
  std::size_t at = 0;
  const auto refuse = [&at](const char* what) {
    throw Error("ERR_COLO_STREAM", 0, "page entry at byte " + std::to_string(at) + ": " + what);
  };
  while (at < payload.size()) {
    std::size_t rest = payload.size() - at;
    if (rest < sizeof(EntryHeader)) refuse("its header is cut off");
    const auto header = load<EntryHeader>(payload.data() + at);
    rest -= sizeof(EntryHeader);
    if (header.block >= block_pages.size()) refuse("there is no such block");
    const std::uint64_t length = block_pages[header.block];
    if (header.count == 0) refuse("it has no pages");
    if (header.page >= length || header.count > length - header.page)
      refuse("it reaches past the end of its block");
    std::size_t body = 0;
    switch (header.kind) {
      case EntryKind::zero:
        break;
      case EntryKind::delta: {
        if (!deltas_allowed) refuse("there is nothing yet that a delta could be against");
        if (header.count != 1) refuse("a delta is for one page");
        if (rest < sizeof(std::uint64_t)) refuse("its mask is cut off");
        const auto mask = load<std::uint64_t>(payload.data() + at + sizeof(EntryHeader));
        if (mask == 0) refuse("its mask is empty");
        body = sizeof mask + static_cast<std::size_t>(std::popcount(mask)) * kLineSize;
        break;
      }
      case EntryKind::raw:
        body = std::size_t{header.count} * kPageSize;
        break;
      default:
        refuse("its kind is unknown");
    }
    if (body > rest) refuse("its body is cut off");
    pages += header.count;
    at += sizeof(EntryHeader) + body;
  }
  return pages;
}

void decode_entries(std::span<const std::byte> payload, const EntrySink& sink) {
  const std::byte* at = payload.data();
  const std::byte* const end = at + payload.size();
  while (at != end) {
    const auto header = load<EntryHeader>(at);
    at += sizeof(EntryHeader);
    const std::uint64_t offset = header.page * kPageSize;
    switch (header.kind) {
      case EntryKind::zero:
        sink.zero_run(header.block, PageRun{header.page, header.count});
        break;
      case EntryKind::raw: {
        const std::size_t length = std::size_t{header.count} * kPageSize;
        sink.write(header.block, MemoryWrite{offset, at, length});
        at += length;
        break;
      }
      case EntryKind::delta: {
        auto mask = load<std::uint64_t>(at);
        at += sizeof mask;
        // Neighbouring lines lie side by side here and there, so each run of set bits is one write.
        for (unsigned line = 0; mask != 0;) {
          const auto gap = static_cast<unsigned>(std::countr_zero(mask));
          mask >>= gap;
          line += gap;
          const auto run = static_cast<unsigned>(std::countr_one(mask));
          sink.write(header.block, MemoryWrite{offset + line * kLineSize, at, run * kLineSize});
          at += run * kLineSize;
          line += run;
          mask = run == kLinesPerPage ? 0 : mask >> run;
        }
        break;
      }
    }
    COLO_ASSERT(at <= end);
  }
}

}  // namespace colo
