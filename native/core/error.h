// Errors and always-on assertions of the native core.
#pragma once

#include <stdexcept>
#include <string>

namespace colo {

// What every function of the core throws. `code` is stable and documented ("ERR_COLO_..."); programs match on
// it, people read what(). `sys_errno` is the errno behind it, or 0.
class Error : public std::runtime_error {
 public:
  Error(const char* code, int sys_errno, const std::string& what);

  const char* code() const { return code_; }
  int sys_errno() const { return sys_errno_; }

 private:
  const char* code_;  // always a string literal
  int sys_errno_;
};

// Throws Error{code, errno, what + ": " + strerror(errno)}.
[[noreturn]] void throw_errno(const char* code, const std::string& what);

[[noreturn]] void assertion_failed(const char* expression, const char* file, int line);

}  // namespace colo

// On in every build type: these guard the invariants that protect data. CMake's release types define NDEBUG,
// which assert() obeys and this does not.
#define COLO_ASSERT(expression) \
  (static_cast<bool>(expression) ? (void)0 : ::colo::assertion_failed(#expression, __FILE__, __LINE__))
