// What another process has mapped where.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <vector>

namespace colo {

struct Mapping {
  std::uint64_t start = 0, end = 0;
  bool readable = false, writable = false, executable = false;
  bool shared = false;
  std::uint64_t file_offset = 0;         // of `start`, in bytes
  std::uint64_t page_size_bytes = 4096;  // of the kernel for this mapping: more for hugetlbfs
  std::string path;                      // empty for anonymous memory
};

// The mappings of process `pid`, by ascending address, from /proc/PID/smaps (proc_pid_smaps(5)): unlike
// `maps` it tells the page size, and unlike /proc/PID/map_files it needs no more rights than ptrace does. The
// kernel walks the page tables for it, so this belongs to attaching only. Throws ERR_COLO_PROCESS.
std::vector<Mapping> read_process_maps(pid_t pid);

// The text of such a file; `path` is for errors. Throws ERR_COLO_PROCESS for an empty mapping and for a page
// size that no kernel has: others divide by it.
std::vector<Mapping> parse_smaps(const std::string& text, const std::string& path);

}  // namespace colo
