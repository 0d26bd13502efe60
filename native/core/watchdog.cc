#include "watchdog.h"

#include <fcntl.h>
#include <linux/watchdog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "error.h"

namespace colo {
namespace {

constexpr char kMagicClose = 'V';

// Writing anything arms the device for good, so that a mistake found after open() has to be taken back.
void close_unarmed(WatchdogCalls& calls, UniqueFd& fd) {
  const int saved = errno;
  calls.write(fd.get(), kMagicClose);
  fd.reset();
  errno = saved;
}

}  // namespace

int WatchdogCalls::open(const char* path) { return ::open(path, O_WRONLY | O_CLOEXEC | O_NONBLOCK); }

int WatchdogCalls::get_support(int fd, watchdog_info* info) { return ::ioctl(fd, WDIOC_GETSUPPORT, info); }

int WatchdogCalls::set_timeout(int fd, int* timeout_s) { return ::ioctl(fd, WDIOC_SETTIMEOUT, timeout_s); }

ssize_t WatchdogCalls::write(int fd, char byte) { return ::write(fd, &byte, 1); }

WatchdogCalls& system_watchdog_calls() {
  static WatchdogCalls calls;
  return calls;
}

Watchdog::Watchdog(const std::string& path, int timeout_s, WatchdogCalls& calls)
    : calls_(calls), path_(path), timeout_s_(timeout_s) {
  UniqueFd fd(calls.open(path.c_str()));
  if (!fd && errno == EBUSY)
    throw Error("ERR_COLO_WATCHDOG", EBUSY,
                path +
                    " is in use by another program (systemd's RuntimeWatchdogSec?): free it, or leave "
                    "--watchdog out");
  if (!fd) throw_errno("ERR_COLO_WATCHDOG", "opening the watchdog " + path);
  watchdog_info info{};
  if (calls.get_support(fd.get(), &info) != 0) {
    const int saved = errno;
    fd.reset();
    throw Error("ERR_COLO_WATCHDOG", saved, path + " is no watchdog: " + std::strerror(saved));
  }
  const auto* const identity = reinterpret_cast<const char*>(info.identity);
  identity_.assign(identity, ::strnlen(identity, sizeof info.identity));
  if ((info.options & WDIOF_MAGICCLOSE) == 0) {
    close_unarmed(calls, fd);
    throw Error(
        "ERR_COLO_WATCHDOG", 0,
        path + " (" + identity_ +
            ") is disarmed by whoever closes it, so by a dying agent, too: it lacks WDIOF_MAGICCLOSE");
  }
  if (calls.set_timeout(fd.get(), &timeout_s_) != 0) {
    close_unarmed(calls, fd);
    throw_errno("ERR_COLO_WATCHDOG",
                path + " (" + identity_ + ") takes no time-out of " + std::to_string(timeout_s) + " s");
  }
  fd_ = std::move(fd);
}

void Watchdog::write(char byte, const char* doing) {
  if (calls_.write(fd_.get(), byte) == 1) return;
  throw_errno("ERR_COLO_WATCHDOG", std::string(doing) + " the watchdog " + path_);
}

void Watchdog::feed() { write('\0', "feeding"); }

void Watchdog::disarm() {
  write(kMagicClose, "disarming");
  fd_.reset();
}

}  // namespace colo
