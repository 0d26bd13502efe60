#include "error.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace colo {

Error::Error(const char* code, int sys_errno, const std::string& what)
    : std::runtime_error(what), code_(code), sys_errno_(sys_errno) {}

void throw_errno(const char* code, const std::string& what) {
  const int saved = errno;
  throw Error(code, saved, what + ": " + std::strerror(saved));
}

void assertion_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "colo-agent: assertion failed: %s (%s:%d)\n", expression, file, line);
  std::abort();
}

}  // namespace colo
