// The guest RAM of an attached QEMU process, block by block.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace colo {

inline constexpr std::size_t kPageSize = 4096;

// One of QEMU's RAM blocks as `info ramblock` names it: where QEMU has mapped it in its own address space,
// and how long it is in bytes. A multiple of kPageSize; the address is page-aligned.
struct RamBlock {
  std::string name;
  std::uint64_t host_address = 0;
  std::uint64_t size = 0;

  std::uint64_t pages() const { return size / kPageSize; }
};

// `count` consecutive pages of one block, from page `first` on.
struct PageRun {
  std::uint64_t first = 0;
  std::uint64_t count = 0;

  bool operator==(const PageRun&) const = default;
};

// One write into guest RAM: `length` bytes from `data` to byte `offset` of the block.
struct MemoryWrite {
  std::uint64_t offset = 0;
  const std::byte* data = nullptr;
  std::size_t length = 0;
};

// How a block is reached: `mapped` shares QEMU's own pages (its backend is a memfd or a file mapped
// MAP_SHARED, opened through /proc/PID/map_files), `remote` goes through process_vm_readv/process_vm_writev
// (private memory).
enum class MemoryAccess { mapped, remote };

// Thread rules: after construction, const functions may run on several threads at once on disjoint ranges.
// Nothing here stops the guest: who reads while it runs reads a moving target. Reading a page of a shared
// backend that nothing was written to yet makes the kernel allocate it.
class GuestMemory {
 public:
  // Attaches to every block of process `pid`, opening whichever way of access its mapping allows. Throws
  // Error ERR_COLO_GUEST_MEMORY when an address range isn't mapped read-write in that process,
  // ERR_COLO_PROCESS when there is no such process or it can't be looked into (needs CAP_SYS_PTRACE). A
  // shared block whose backend can't be opened here (/proc/PID/map_files wants CAP_SYS_ADMIN or
  // CAP_CHECKPOINT_RESTORE) falls back to `remote`.
  GuestMemory(pid_t pid, std::vector<RamBlock> blocks);
  ~GuestMemory();
  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  pid_t pid() const;
  std::size_t block_count() const;
  const RamBlock& block(std::size_t index) const;
  MemoryAccess access(std::size_t index) const;
  std::uint64_t total_bytes() const;

  // The kernel's page size behind the block, in bytes: kPageSize, or a huge page's with hugetlbfs.
  std::uint64_t page_size_bytes(std::size_t index) const;

  // The block's bytes in our own address space, or nullptr for `remote` access.
  const std::byte* mapped(std::size_t index) const;

  // Throws ERR_COLO_GUEST_MEMORY (ESRCH) when QEMU is gone. Its memory and page tables can be looked at for
  // longer than that, but what they say means nothing then.
  void require_alive() const;

  // Copies the pages of `runs` one after the other into `out` (room for all of them). Throws
  // ERR_COLO_GUEST_MEMORY: ESRCH once QEMU is gone, also for a mapped block; EFAULT where QEMU has unmapped
  // something.
  void read_pages(std::size_t index, std::span<const PageRun> runs, std::byte* out) const;

  // Copies bytes [offset, offset + out.size()) of the block. Throws as read_pages.
  void read(std::size_t index, std::uint64_t offset, std::span<std::byte> out) const;

  // Carries out `writes` in order. Throws ERR_COLO_GUEST_MEMORY; some of the writes may have been done then.
  void write(std::size_t index, std::span<const MemoryWrite> writes) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace colo
