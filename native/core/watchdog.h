// The kernel's watchdog (/dev/watchdog): once opened, whoever stops feeding it has the host reset.
#pragma once

#include <string>

#include "unique_fd.h"

struct watchdog_info;

namespace colo {

// The device's system calls, as a seam: a test must not have its host reset.
class WatchdogCalls {
 public:
  virtual ~WatchdogCalls() = default;
  virtual int open(const char* path);
  virtual int get_support(int fd, watchdog_info* info);
  virtual int set_timeout(int fd, int* timeout_s);
  virtual ssize_t write(int fd, char byte);
};
WatchdogCalls& system_watchdog_calls();

class Watchdog {
 public:
  // Opens and thereby arms it. Throws ERR_COLO_WATCHDOG, with nothing armed, for what is no watchdog, is in
  // use, or would be disarmed by this process's death.
  Watchdog(const std::string& path, int timeout_s, WatchdogCalls& calls = system_watchdog_calls());
  // Without disarm() before it the host is reset when the time-out is over: so does the agent's death.
  ~Watchdog() = default;

  int timeout_s() const { return timeout_s_; }  // what the device made of the wish
  const std::string& identity() const { return identity_; }

  void feed();  // throws ERR_COLO_WATCHDOG
  // The host goes on without it. A kernel with "nowayout" resets the host nevertheless. Throws
  // ERR_COLO_WATCHDOG; feed() is not called after it.
  void disarm();

 private:
  void write(char byte, const char* doing);

  WatchdogCalls& calls_;
  const std::string path_;
  std::string identity_;
  int timeout_s_;
  UniqueFd fd_;
};

}  // namespace colo
