#include "shadow.h"

#include <sys/mman.h>

namespace colo {

Shadow::Shadow(const GuestMemory& memory) {
  blocks_.reserve(memory.block_count());
  for (std::size_t block = 0; block < memory.block_count(); ++block) {
    blocks_.emplace_back(memory.block(block).size, PROT_READ | PROT_WRITE, kHugePageSize);
    blocks_.back().seal();
    // Only advice, refused by a kernel without transparent huge pages.
    (void)::madvise(blocks_.back().data(), blocks_.back().size(), MADV_HUGEPAGE);
  }
}

}  // namespace colo
