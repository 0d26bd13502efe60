#include "process_maps.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <sstream>

#include "error.h"
#include "unique_fd.h"

namespace colo {
namespace {

constexpr std::uint64_t kPageKibMax = 16u << 20;  // 16 GiB: no kernel has larger pages

std::string read_text(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) throw_errno("ERR_COLO_PROCESS", path);
  std::string text;
  std::array<char, 65536> buffer;
  for (;;) {
    const ssize_t length = ::read(fd.get(), buffer.data(), buffer.size());
    if (length == 0) return text;
    if (length > 0) {
      text.append(buffer.data(), static_cast<std::size_t>(length));
    } else if (errno != EINTR) {
      throw_errno("ERR_COLO_PROCESS", path);
    }
  }
}

// "7f12a000-7f12b000 rw-s 00001000 00:01 1234      /memfd:ram (deleted)"
bool parse_header(const std::string& line, Mapping& mapping) {
  char rights[5] = {};
  int path_at = 0;
  if (std::sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %*s %*u %n", &mapping.start,
                  &mapping.end, rights, &mapping.file_offset, &path_at) != 4) {
    return false;
  }
  if (path_at == 0) return false;  // cut off before the path
  mapping.readable = rights[0] == 'r';
  mapping.writable = rights[1] == 'w';
  mapping.executable = rights[2] == 'x';
  mapping.shared = rights[3] == 's';
  mapping.path = line.substr(static_cast<std::size_t>(path_at));
  return true;
}

}  // namespace

std::vector<Mapping> parse_smaps(const std::string& text, const std::string& path) {
  std::vector<Mapping> mappings;
  std::istringstream lines(text);
  const auto refuse = [&path](const std::string& line) {
    throw Error("ERR_COLO_PROCESS", 0, path + ": can't understand the line '" + line + "'");
  };
  for (std::string line; std::getline(lines, line);) {
    Mapping mapping;
    std::uint64_t page_size_kib = 0;
    if (parse_header(line, mapping)) {
      if (mapping.start >= mapping.end) refuse(line);
      mappings.push_back(std::move(mapping));
    } else if (std::sscanf(line.c_str(), "KernelPageSize: %" SCNu64 " kB", &page_size_kib) == 1) {
      const bool plausible = page_size_kib > 0 && page_size_kib % 4 == 0 && page_size_kib <= kPageKibMax;
      if (mappings.empty() || !plausible) refuse(line);
      mappings.back().page_size_bytes = page_size_kib * 1024;
    }
  }
  return mappings;
}

std::vector<Mapping> read_process_maps(pid_t pid) {
  const std::string path = "/proc/" + std::to_string(pid) + "/smaps";
  std::vector<Mapping> mappings = parse_smaps(read_text(path), path);
  // A process that has ended and waits to be reaped still has the file.
  if (mappings.empty()) {
    throw Error("ERR_COLO_PROCESS", ESRCH, "process " + std::to_string(pid) + " has no memory");
  }
  return mappings;
}

}  // namespace colo
