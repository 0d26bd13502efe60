#include "scrubber.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <ctime>
#include <memory>
#include <utility>

#include "scrub_stream.h"

namespace colo {
namespace {

// Hashed at once: large enough to make the system calls cheap, small enough to stay in the cache.
constexpr std::uint64_t kChunkPages = 32;

// Less than a busy guest's, but enough that a round comes to its end on a host without a free moment.
constexpr int kPriorityBehind = 5;

std::uint64_t thread_cpu_ns() {
  timespec now = {};
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(now.tv_nsec);
}

std::vector<std::uint64_t> ends_of_blocks(const GuestMemory& memory) {
  std::vector<std::uint64_t> ends;
  for (std::size_t i = 0; i < memory.block_count(); ++i)
    ends.push_back((ends.empty() ? 0 : ends.back()) + memory.block(i).pages());
  return ends;
}

}  // namespace

struct Scrubber::Chunk {
  std::uint64_t pages = 0;
  std::array<std::uint64_t, kChunkPages> hashes;
  std::array<unsigned char, kChunkPages> resident;  // as mincore(2) has it: the lowest bit counts
  std::uint64_t cpu_ns = 0;
  std::unique_ptr<std::byte[]> bounce = std::make_unique_for_overwrite<std::byte[]>(kChunkPages * kPageSize);
};

Scrubber::Scrubber(const GuestMemory& memory, const Shadow* shadow, std::uint64_t slice_pages)
    : memory_(memory),
      shadow_(shadow),
      block_ends_(ends_of_blocks(memory)),
      slice_pages_(std::min(slice_pages, block_ends_.empty() ? 0 : block_ends_.back())) {
  COLO_ASSERT(slice_pages_ > 0);
  thread_ = std::thread([this] { run(); });
}

Scrubber::~Scrubber() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Scrubber::begin() {
  ScrubSlice slice;
  slice.first = next_;
  slice.hashes.reserve(slice_pages_);
  slice.absent.reserve(slice_pages_);
  {
    const std::lock_guard lock(mutex_);
    slice_ = std::move(slice);
    failure_.reset();
    ++number_;
    active_ = true;
  }
  changed_.notify_all();
}

ScrubSlice Scrubber::take() {
  const std::lock_guard lock(mutex_);
  ++number_;
  const bool was_active = std::exchange(active_, false);
  if (was_active && failure_) throw *failure_;
  return was_active ? std::move(slice_) : ScrubSlice{};
}

void Scrubber::stop() {
  const std::lock_guard lock(mutex_);
  ++number_;
  active_ = false;
}

void Scrubber::wait_for_shadow() {
  if (shadow_ == nullptr) return;
  std::unique_lock lock(mutex_);
  COLO_ASSERT(!active_);
  changed_.wait(lock, [this] { return !hashing_; });
}

ScrubFrames Scrubber::frames_of(const ScrubSlice& slice, std::span<const DirtyBitmap> dirty) const {
  COLO_ASSERT(dirty.size() == block_ends_.size());
  ScrubFrames frames;
  std::vector<bool> left_out;
  for (std::size_t done = 0; done < slice.hashes.size(); done += left_out.size()) {
    const auto [block, first, pages_left] = place_of((slice.first + done) % block_ends_.back());
    const std::uint64_t count =
        std::min({pages_left, std::uint64_t{slice.hashes.size() - done}, std::uint64_t{kScrubPagesMax}});
    left_out.assign(count, false);
    for (std::uint64_t i = 0; i < count; ++i)
      left_out[i] = slice.absent[done + i] || dirty[block].test(first + i);
    const auto skipped = static_cast<std::uint64_t>(std::count(left_out.begin(), left_out.end(), true));
    frames.skipped_pages += skipped;
    frames.checked_pages += count - skipped;
    if (skipped == count) continue;
    frames.payloads.push_back(encode_scrub(static_cast<std::uint16_t>(block), {first, count},
                                           std::span(slice.hashes).subspan(done, count), left_out));
  }
  return frames;
}

void Scrubber::sent(const ScrubSlice& slice) {
  next_ += slice.hashes.size();
  rounds_ += next_ / block_ends_.back();
  next_ %= block_ends_.back();
}

Scrubber::Place Scrubber::place_of(std::uint64_t page) const {
  const auto end = std::upper_bound(block_ends_.begin(), block_ends_.end(), page);
  const auto block = static_cast<std::size_t>(end - block_ends_.begin());
  return {block, page - (block == 0 ? 0 : block_ends_[block - 1]), *end - page};
}

bool Scrubber::has_work() const { return active_ && !failure_ && slice_.hashes.size() < slice_pages_; }

void Scrubber::run() {
  // Of this thread alone; more than the lowest there is becomes the lowest.
  const auto thread = static_cast<id_t>(::gettid());
  (void)::setpriority(PRIO_PROCESS, thread, ::getpriority(PRIO_PROCESS, thread) + kPriorityBehind);
  Chunk chunk;
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return closing_ || has_work(); });
    if (closing_) return;
    const std::uint64_t number = number_, done = slice_.hashes.size();
    const std::uint64_t first = (slice_.first + done) % block_ends_.back();
    chunk.pages = std::min({kChunkPages, slice_pages_ - done, place_of(first).pages_left});
    hashing_ = true;
    lock.unlock();
    std::optional<Error> failure;
    try {
      hash(first, chunk);
    } catch (const Error& error) {
      failure = error;
    }
    lock.lock();
    hashing_ = false;
    if (number != number_) {
      changed_.notify_all();
      continue;
    }
    if (failure) {
      failure_ = std::move(failure);
    } else {
      append(chunk);
    }
  }
}

void Scrubber::hash(std::uint64_t first, Chunk& chunk) const {
  const std::uint64_t began_ns = thread_cpu_ns();
  const Place place = place_of(first);
  chunk.resident.fill(1);
  if (shadow_ == nullptr) {
    hash_live(place, chunk);
  } else {
    for (std::uint64_t i = 0; i < chunk.pages; ++i)
      chunk.hashes[i] = hash_of_page(shadow_->page(place.block, place.page + i));
  }
  chunk.cpu_ns = thread_cpu_ns() - began_ns;
}

void Scrubber::hash_live(const Place& place, Chunk& chunk) const {
  const std::byte* from = memory_.mapped(place.block);
  if (from != nullptr) {
    from += place.page * kPageSize;
    // Reading would bring back a page that a balloon has taken out of a shared backend, as zeros and without
    // the tracker's seeing it. In private memory such a page comes back as a written one.
    if (::mincore(const_cast<std::byte*>(from), chunk.pages * kPageSize, chunk.resident.data()) != 0)
      throw_errno("ERR_COLO_GUEST_MEMORY", "looking for the pages that RAM block " +
                                               memory_.block(place.block).name + " has memory for");
  } else {
    memory_.read(place.block, place.page * kPageSize, {chunk.bounce.get(), chunk.pages * kPageSize});
    from = chunk.bounce.get();
  }
  for (std::uint64_t i = 0; i < chunk.pages; ++i)
    chunk.hashes[i] = (chunk.resident[i] & 1) != 0 ? hash_of_page(from + i * kPageSize) : 0;
}

void Scrubber::append(const Chunk& chunk) {
  slice_.cpu_ns += chunk.cpu_ns;
  for (std::uint64_t i = 0; i < chunk.pages; ++i) {
    slice_.hashes.push_back(chunk.hashes[i]);
    slice_.absent.push_back((chunk.resident[i] & 1) == 0);
  }
}

}  // namespace colo
