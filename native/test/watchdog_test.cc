#include "../core/watchdog.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/watchdog.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "../core/error.h"

namespace colo {
namespace {

// A device whose bytes end in a string; its descriptor is one of /dev/null.
class FakeDevice : public WatchdogCalls {
 public:
  int open(const char*) override {
    errno = open_errno;
    return open_errno == 0 ? ::open("/dev/null", O_WRONLY | O_CLOEXEC) : -1;
  }
  int get_support(int, watchdog_info* info) override {
    info->options = options;
    std::memcpy(info->identity, "Fake Dog", 9);
    return 0;
  }
  int set_timeout(int, int* timeout_s) override {
    errno = set_timeout_errno;
    if (set_timeout_errno != 0) return -1;
    *timeout_s = std::min(*timeout_s, 30);
    return 0;
  }
  ssize_t write(int fd, char byte) override {
    if (::fcntl(fd, F_GETFD) < 0) return -1;
    written += byte;
    return 1;
  }

  int open_errno = 0, set_timeout_errno = 0;
  unsigned options = WDIOF_MAGICCLOSE;
  std::string written;
};

std::string refusal(FakeDevice& device) {
  try {
    Watchdog watchdog("/dev/watchdog", 20, device);
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_WATCHDOG");
    return error.what();
  }
  ADD_FAILURE() << "not refused";
  return "";
}

TEST(Watchdog, IsFedAndDisarmed) {
  FakeDevice device;
  Watchdog watchdog("/dev/watchdog", 20, device);
  EXPECT_EQ(watchdog.timeout_s(), 20);
  EXPECT_EQ(watchdog.identity(), "Fake Dog");
  watchdog.feed();
  watchdog.feed();
  watchdog.disarm();
  EXPECT_EQ(device.written, std::string("\0\0V", 3));
  EXPECT_THROW(watchdog.feed(), Error);
}

TEST(Watchdog, StaysArmedWithoutBeingDisarmed) {
  FakeDevice device;
  { Watchdog watchdog("/dev/watchdog", 20, device); }
  EXPECT_EQ(device.written, "");
}

TEST(Watchdog, SaysWhatTheDeviceMadeOfTheTimeOut) {
  FakeDevice device;
  EXPECT_EQ(Watchdog("/dev/watchdog", 60, device).timeout_s(), 30);
}

TEST(Watchdog, OneThatADyingAgentWouldDisarmIsRefused) {
  FakeDevice device;
  device.options = 0;
  EXPECT_NE(refusal(device).find("lacks WDIOF_MAGICCLOSE"), std::string::npos);
  EXPECT_EQ(device.written, "V");
}

TEST(Watchdog, OneThatTakesNoTimeOutIsRefusedAndDisarmed) {
  FakeDevice device;
  device.set_timeout_errno = EINVAL;
  EXPECT_NE(refusal(device).find("takes no time-out of 20 s: Invalid argument"), std::string::npos);
  EXPECT_EQ(device.written, "V");
}

TEST(Watchdog, OneInUseIsRefused) {
  FakeDevice device;
  device.open_errno = EBUSY;
  EXPECT_NE(refusal(device).find("in use by another program"), std::string::npos);
}

TEST(Watchdog, WhatIsNoWatchdogIsRefused) {
  for (const char* path : {"/dev/null", "/nonexistent/watchdog"}) {
    try {
      Watchdog watchdog(path, 20);
      FAIL() << path;
    } catch (const Error& error) {
      EXPECT_STREQ(error.code(), "ERR_COLO_WATCHDOG");
      EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace colo
