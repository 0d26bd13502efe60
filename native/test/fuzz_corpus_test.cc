// Every input of the fuzzers' corpus, through the same functions that libFuzzer calls.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "../fuzz/targets.h"

namespace colo {
namespace {

const std::filesystem::path kCorpus = COLO_CORPUS_FOLDER;

std::vector<std::byte> content_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

class FuzzCorpus : public ::testing::TestWithParam<fuzz::Target> {};

// A finding ends the process, as it does under libFuzzer. That something is accepted says that the seeds are
// still of today's formats; if not, make_corpus makes new ones.
TEST_P(FuzzCorpus, HoldsNothingThatADecoderFailsAt) {
  unsigned inputs = 0, accepted = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kCorpus / GetParam().name)) {
    SCOPED_TRACE(entry.path());
    ++inputs;
    if (GetParam().run(content_of(entry.path())) == fuzz::Verdict::accepted) ++accepted;
  }
  EXPECT_GT(accepted, 0u) << "of " << inputs << ": make the seeds anew with make_corpus " << kCorpus;
}

// What is cut off anywhere is refused or makes sense by itself.
TEST_P(FuzzCorpus, MayEndAnywhere) {
  for (const auto& entry : std::filesystem::directory_iterator(kCorpus / GetParam().name)) {
    SCOPED_TRACE(entry.path());
    const auto bytes = content_of(entry.path());
    const std::size_t step = bytes.size() / 40 + 1;
    for (std::size_t length = 0; length < bytes.size(); length += step)
      (void)GetParam().run(std::span(bytes).first(length));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzCorpus, ::testing::ValuesIn(fuzz::kTargets),
                         [](const auto& target) { return std::string(target.param.name); });

TEST(FuzzCorpus, HasNoFolderOfATargetThatIsGone) {
  for (const auto& entry : std::filesystem::directory_iterator(kCorpus)) {
    const bool known = std::ranges::any_of(
        fuzz::kTargets, [&](const fuzz::Target& target) { return entry.path().filename() == target.name; });
    EXPECT_TRUE(known) << entry.path();
  }
}

}  // namespace
}  // namespace colo
