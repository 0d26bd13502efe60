#include "../core/worker_pool.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace colo {
namespace {

TEST(WorkerPool, RunsEveryPartOnce) {
  for (const unsigned threads : {1u, 2u, 5u}) {
    WorkerPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (unsigned parts = 0; parts < 40; ++parts) {
      std::vector<std::atomic<int>> runs(parts);
      pool.run(parts, [&](unsigned part) { ++runs[part]; });
      for (const auto& count : runs) EXPECT_EQ(count, 1);
    }
  }
}

TEST(WorkerPool, WithOneThreadRunsInTheCaller) {
  WorkerPool pool(1);
  pool.run(
      8, [caller = std::this_thread::get_id()](unsigned) { EXPECT_EQ(std::this_thread::get_id(), caller); });
}

TEST(WorkerPool, RunsPartsAtTheSameTime) {
  WorkerPool pool(3);
  std::barrier all_three(3);  // would never be passed by fewer threads
  pool.run(3, [&](unsigned) { all_three.arrive_and_wait(); });
}

TEST(WorkerPool, RethrowsTheFirstExceptionAfterEveryPartHasEnded) {
  for (const unsigned threads : {1u, 3u}) {
    WorkerPool pool(threads);
    std::atomic<int> ended = 0;
    EXPECT_THROW(pool.run(20,
                          [&](unsigned part) {
                            ++ended;
                            if (part % 3 == 0) throw std::runtime_error("part");
                          }),
                 std::runtime_error);
    EXPECT_EQ(ended, 20);
    pool.run(20, [&](unsigned) { ++ended; });  // the failure is forgotten
    EXPECT_EQ(ended, 40);
  }
}

TEST(WorkerPool, IsUsableForManyShortJobs) {
  WorkerPool pool(4);
  std::atomic<std::uint64_t> sum = 0;
  for (unsigned i = 0; i < 2000; ++i) pool.run(i % 7, [&](unsigned part) { sum += part; });
  std::uint64_t expected = 0;
  for (unsigned i = 0; i < 2000; ++i) {
    for (unsigned part = 0; part < i % 7; ++part) expected += part;
  }
  EXPECT_EQ(sum, expected);
}

}  // namespace
}  // namespace colo
