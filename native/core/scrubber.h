// The primary's part of the scrub: hashes a rotating slice of guest RAM between two checkpoints.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "dirty_bitmap.h"
#include "error.h"
#include "guest_memory.h"
#include "shadow.h"

namespace colo {

// Pages that follow one another, counted through all blocks from the first page of the first one, and, after
// the last page of the last one, from there again.
struct ScrubSlice {
  std::uint64_t first = 0;
  std::vector<std::uint64_t> hashes;
  // Not looked at: the host has no memory for the page, because somebody gave it back (a balloon). What it
  // holds then is nobody's business.
  std::vector<bool> absent;
  std::uint64_t cpu_ns = 0;  // processor time that hashing has taken
};

// A slice as SCRUB frames' payloads (scrub_stream.h).
struct ScrubFrames {
  std::vector<std::vector<std::byte>> payloads;
  std::uint64_t checked_pages = 0;
  std::uint64_t skipped_pages = 0;  // dirty, so that they are sent anyway, or absent
};

// INVARIANT 8. What the guest hasn't written since the last checkpoint is on the standby as it is here: this
// is what the tracker says, and what the hashes prove. They are made of RAM as it is while the guest runs, by
// a thread of lower priority, after one checkpoint's capture and before the next one's; a page that
// changed meanwhile is dirty in the next one, and left out. So a pause never waits for a hash.
//
// That is so with a tracker that notices writes. One that compares doesn't notice a page that was changed and
// changed back, whose hash may be of the moment between: then the shadow is hashed instead, which the page is
// compared with afterwards.
//
// Thread rules: all public functions come from one thread at a time.
class Scrubber {
 public:
  // At most `slice_pages` (more than none, asserted) are hashed for one checkpoint. `memory`, which has pages
  // (asserted), must outlive the scrubber, and so must `shadow`: nullptr, or what is to be hashed in its
  // place.
  Scrubber(const GuestMemory& memory, const Shadow* shadow, std::uint64_t slice_pages);
  ~Scrubber();

  // Begins to hash the next slice, which is the last one again unless that was sent(). What is dirty from now
  // on stays in the bitmaps until frames_of() has seen them.
  void begin();

  // Ends what begin() has begun: from here on nothing is hashed. Returns what there is, which may be nothing.
  // Waits for no page. Throws ERR_COLO_GUEST_MEMORY when guest RAM could not be read.
  ScrubSlice take();

  // The same without an answer, for what nobody will be asked about.
  void stop();

  // After take() or stop(): returns when the shadow isn't read any more, so that it may be written. Outside
  // the pause.
  void wait_for_shadow();

  // `dirty` has the pages that were written since the checkpoint before begin().
  ScrubFrames frames_of(const ScrubSlice& slice, std::span<const DirtyBitmap> dirty) const;

  // The next slice begins where this one has ended.
  void sent(const ScrubSlice& slice);

  // How often all of RAM has been gone through.
  std::uint64_t rounds() const { return rounds_; }

 private:
  struct Place {
    std::size_t block;
    std::uint64_t page;
    std::uint64_t pages_left;  // of the block, this one counted
  };
  struct Chunk;

  Place place_of(std::uint64_t page) const;
  bool has_work() const;
  void run();
  void hash(std::uint64_t first, Chunk& chunk) const;
  void hash_live(const Place& place, Chunk& chunk) const;
  void append(const Chunk& chunk);

  const GuestMemory& memory_;
  const Shadow* const shadow_;
  std::vector<std::uint64_t> block_ends_;  // in pages, through all blocks
  const std::uint64_t slice_pages_;
  std::uint64_t next_ = 0, rounds_ = 0;

  std::mutex mutex_;  // guards the following; held for no longer than it takes to copy a few hashes
  std::condition_variable changed_;
  ScrubSlice slice_;
  std::optional<Error> failure_;
  std::uint64_t number_ = 0;  // of the slice: what was hashed for an earlier one is thrown away
  bool active_ = false;
  bool hashing_ = false;  // a chunk, without the mutex
  bool closing_ = false;
  std::thread thread_;
};

}  // namespace colo
