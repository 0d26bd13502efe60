#include "../core/vmstate_mailbox.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "../core/error.h"
#include "../core/unique_fd.h"

namespace colo {
namespace {

constexpr std::uint64_t kOffset = 7 * 65536, kStateBytes = 4096;
const std::string kMachine = "pc-q35-7.2";

std::string stream_of(std::size_t length) {
  return std::string("QEVM\0\0\0\3", 8) + std::string(length - 8, 's');
}

std::span<const std::byte> bytes_of(const std::string& text) { return std::as_bytes(std::span(text)); }

class VmstateMailboxTest : public ::testing::Test {
 protected:
  std::string contents(std::size_t length) const {
    std::string read(length, '\0');
    EXPECT_EQ(::pread(file_.get(), read.data(), length, kOffset), static_cast<ssize_t>(length));
    return read;
  }
  std::string refusal(const std::string& vmstate) const {
    try {
      mailbox_.check(bytes_of(vmstate));
    } catch (const Error& error) {
      EXPECT_STREQ(error.code(), "ERR_COLO_VMSTATE");
      return error.what();
    }
    return "";
  }

  UniqueFd file_{::memfd_create("mailbox", MFD_CLOEXEC)};
  VmstateMailbox mailbox_{file_.get(), kOffset, kStateBytes, kMachine};
};

TEST_F(VmstateMailboxTest, MakesTheSavedStreamLoadable) {
  const std::string vmstate = stream_of(100);
  ASSERT_EQ(refusal(vmstate), "");
  mailbox_.write(bytes_of(vmstate));
  const std::string expected = std::string("QEVM\0\0\0\3", 8) + std::string("\7\0\0\0\12", 5) + kMachine +
                               std::string(92, 's') + std::string("\6\0\0\0\0", 5);
  EXPECT_EQ(contents(expected.size()), expected);
  mailbox_.write(bytes_of(stream_of(50)));  // over it, in place
  EXPECT_EQ(contents(23), expected.substr(0, 23));
}

TEST_F(VmstateMailboxTest, RefusesWhatIsNoStreamOrTooLong) {
  EXPECT_EQ(mailbox_.vmstate_bytes_max(), kStateBytes - 5 - kMachine.size() - 5);
  EXPECT_EQ(refusal(stream_of(mailbox_.vmstate_bytes_max())), "");
  EXPECT_NE(refusal(stream_of(mailbox_.vmstate_bytes_max() + 1)).find("mailbox takes"), std::string::npos);
  EXPECT_NE(refusal(""), "");
  EXPECT_NE(refusal(stream_of(8)), "");
  std::string other = stream_of(100);
  other[0] = 'q';
  EXPECT_NE(refusal(other).find("not a QEMU stream"), std::string::npos);
  other = stream_of(100);
  other[7] = 4;
  EXPECT_NE(refusal(other).find("version 3"), std::string::npos);
}

TEST_F(VmstateMailboxTest, LongestStateEndsWhereItsAreaEnds) {
  mailbox_.write(bytes_of(stream_of(mailbox_.vmstate_bytes_max())));
  EXPECT_EQ(::lseek(file_.get(), 0, SEEK_END), static_cast<off_t>(kOffset + kStateBytes));
}

TEST_F(VmstateMailboxTest, FailedWriteIsReported) {
  const UniqueFd read_only(
      ::open(("/proc/self/fd/" + std::to_string(file_.get())).c_str(), O_RDONLY | O_CLOEXEC));
  const VmstateMailbox mailbox(read_only.get(), kOffset, kStateBytes, kMachine);
  try {
    mailbox.write(bytes_of(stream_of(20)));
    FAIL();
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_MAILBOX");
    EXPECT_EQ(error.sys_errno(), EBADF);
  }
}

TEST(VmstateMailbox, RefusesImpossibleMachineNames) {
  EXPECT_THROW(VmstateMailbox(-1, 0, 0, ""), Error);
  EXPECT_THROW(VmstateMailbox(-1, 0, 0, std::string(256, 'm')), Error);
  EXPECT_EQ(VmstateMailbox(-1, 0, 3, std::string(255, 'm')).vmstate_bytes_max(), 0u);
}

}  // namespace
}  // namespace colo
