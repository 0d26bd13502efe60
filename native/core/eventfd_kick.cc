#include "eventfd_kick.h"

#include <dirent.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "error.h"
#include "unique_fd.h"

namespace colo {
namespace {

struct CloseFolder {
  void operator()(DIR* folder) const { ::closedir(folder); }
};
using Folder = std::unique_ptr<DIR, CloseFolder>;

bool is_eventfd(const std::string& link) {
  std::array<char, 64> target;
  const ssize_t length = ::readlink(link.c_str(), target.data(), target.size());
  return length > 0 &&
         std::string_view(target.data(), static_cast<std::size_t>(length)) == "anon_inode:[eventfd]";
}

}  // namespace

std::size_t kick_eventfds(pid_t pid) {
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)));
  if (!process) throw_errno("ERR_COLO_PROCESS", "opening process " + std::to_string(pid));
  const std::string path = "/proc/" + std::to_string(pid) + "/fd";
  const Folder folder(::opendir(path.c_str()));
  if (!folder) throw_errno("ERR_COLO_PROCESS", "reading " + path);
  std::size_t kicked = 0;
  while (const dirent* entry = ::readdir(folder.get())) {
    if (!is_eventfd(path + "/" + entry->d_name)) continue;
    const int number = std::atoi(entry->d_name);
    const UniqueFd event(static_cast<int>(::syscall(SYS_pidfd_getfd, process.get(), number, 0)));
    if (!event) continue;  // closed since, or out of reach: the others are worth it all the same
    // QEMU's are non-blocking; one that can't take more is signalled already.
    if (::eventfd_write(event.get(), 1) == 0) ++kicked;
  }
  return kicked;
}

}  // namespace colo
