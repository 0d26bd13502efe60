#include "../core/process_maps.h"

#include <gtest/gtest.h>

#include "../core/error.h"

namespace colo {
namespace {

constexpr char kRam[] = "7f12a0000000-7f12a0200000 rw-s 00001000 00:01 1234      /memfd:ram (deleted)\n";

std::string refusal(const std::string& text) {
  try {
    (void)parse_smaps(text, "smaps");
    return "";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_PROCESS");
    return error.what();
  }
}

TEST(ProcessMaps, ReadsWhatTheKernelWrites) {
  const auto mappings = parse_smaps(std::string(kRam) +
                                        "Size:               2048 kB\n"
                                        "KernelPageSize:     2048 kB\n"
                                        "7f12a0200000-7f12a0201000 ---p 00000000 00:00 0 \n"
                                        "KernelPageSize:        4 kB\n",
                                    "smaps");
  ASSERT_EQ(mappings.size(), 2u);
  EXPECT_EQ(mappings[0].path, "/memfd:ram (deleted)");
  EXPECT_EQ(mappings[0].file_offset, 0x1000u);
  EXPECT_EQ(mappings[0].page_size_bytes, 2u << 20);
  EXPECT_TRUE(mappings[0].writable && mappings[0].shared);
  EXPECT_EQ(mappings[1].path, "");
  EXPECT_FALSE(mappings[1].readable || mappings[1].shared);
}

// Found by fuzzing: each of these was an assertion's, or divided by zero later.
TEST(ProcessMaps, RefusesPagesThatNoKernelHas) {
  EXPECT_NE(refusal("KernelPageSize: 4 kB\n"), "");
  EXPECT_NE(refusal(std::string(kRam) + "KernelPageSize: 0 kB\n"), "");
  EXPECT_NE(refusal(std::string(kRam) + "KernelPageSize: 18014398509481984 kB\n"), "");
  EXPECT_NE(refusal("7f12a0200000-7f12a0000000 rw-s 00001000 00:01 1234      /memfd:ram\n"), "");
}

}  // namespace
}  // namespace colo
