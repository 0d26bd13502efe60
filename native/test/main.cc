#include <gtest/gtest.h>

int main(int argc, char** argv) {
  // A death test forks, and the child of a process with threads may wait for ever for a lock that one of them
  // held: ThreadSanitizer's allocator has such locks. In this style the child begins anew, by exec().
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
