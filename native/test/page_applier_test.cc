#include "../core/page_applier.h"

#include <gtest/gtest.h>

#include <fstream>

#include "../core/page_delta.h"
#include "engine_harness.h"

namespace colo {
namespace {

using testing::Bytes;
using testing::ModelledGuest;
using testing::ram_of;
using testing::same_ram;

Bytes gathered(const EntryWriter& writer) {
  Bytes bytes;
  for (const iovec& piece : writer.pieces()) {
    const auto* from = static_cast<const std::byte*>(piece.iov_base);
    bytes.insert(bytes.end(), from, from + piece.iov_len);
  }
  return bytes;
}

TEST(PageApplier, ManyScatteredWritesOverSeveralBlocksLandWhereTheyBelong) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937_64 random(seed);
  const ModelledGuest guest({{300, true}, {300, false}});
  const GuestMemory memory(guest.pid(), guest.blocks());
  PageApplier applier(memory);
  std::vector<Bytes> model = guest.model();
  Bytes data(kPageSize);
  for (const bool first_copy : {true, false, false}) {
    EntryWriter writer(8u << 20, 5000);
    for (int i = 0; i < 1500; ++i) {
      const auto block = static_cast<std::uint16_t>(random() % 2);
      const std::uint64_t page = random() % 300;
      std::byte* const modelled = model[block].data() + page * kPageSize;
      const auto kind = random() % 3;
      if (kind == 0) {
        writer.add_zero(block, page);
        std::memset(modelled, 0, kPageSize);
      } else if (kind == 1 && !first_copy) {
        for (std::byte& byte : data) byte = std::byte(random());
        const std::uint64_t mask = 0x5555555555555555;  // 32 writes a page
        writer.add_delta(block, page, data.data(), mask);
        for (std::size_t line = 0; line < kLinesPerPage; line += 2) {
          std::memcpy(modelled + line * kLineSize, data.data() + line * kLineSize, kLineSize);
        }
      } else {
        std::memset(modelled, static_cast<int>(random()), kPageSize);
        // Referred to until it is gathered, and the model changes below it: apply each at once.
        writer.add_raw(block, page, modelled);
        const Bytes payload = gathered(writer);
        first_copy ? applier.apply_first_copy(payload) : applier.apply(payload);
        writer.clear();
      }
    }
    const Bytes payload = gathered(writer);
    first_copy ? applier.apply_first_copy(payload) : applier.apply(payload);
    ASSERT_TRUE(same_ram(ram_of(guest), model));
  }
}

// Anonymous memory of a process, in KiB.
unsigned long resident_kib(pid_t pid) { return std::stoul(testing::status_field(pid, "RssAnon")); }

TEST(PageApplier, FirstCopyOfZeroPagesDoesNotFillTheStandbysMemory) {
  constexpr std::uint64_t kPages = 4096;  // 16 MiB
  ModelledGuest guest({{kPages, false}});
  guest.scribble(0, 77 * kPageSize, 10, 5);
  const GuestMemory memory(guest.pid(), guest.blocks());
  EntryWriter writer(1u << 20, 16);
  for (std::uint64_t page = 0; page < kPages; ++page) writer.add_zero(0, page);
  const unsigned long before = resident_kib(guest.pid());
  PageApplier(memory).apply_first_copy(gathered(writer));
  EXPECT_LT(resident_kib(guest.pid()), before + 1024);
  EXPECT_EQ(ram_of(guest)[0], Bytes(kPages * kPageSize));  // also what was not zero
}

}  // namespace
}  // namespace colo
