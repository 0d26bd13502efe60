#include "../core/descriptors.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../core/error.h"
#include "child_process.h"

namespace colo {
namespace {

class UnixListener {
 public:
  explicit UnixListener(int backlog) : fd_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    char folder[] = "/tmp/colo-descriptors-XXXXXX";
    folder_ = ::mkdtemp(folder);
    path_ = folder_ + "/socket";
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strcpy(address.sun_path, path_.c_str());
    if (::bind(fd_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0) std::abort();
    if (::listen(fd_.get(), backlog) < 0) std::abort();
  }
  ~UnixListener() {
    ::unlink(path_.c_str());
    ::rmdir(folder_.c_str());
  }
  const std::string& path() const { return path_; }
  UniqueFd accept() { return UniqueFd(::accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC)); }

 private:
  UniqueFd fd_;
  std::string folder_, path_;
};

std::string error_text(const std::string& path) {
  try {
    connect_unix(path);
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_SOCKET");
    return error.what();
  }
  return "connected";
}

TEST(ListenUnix, TakesConnectionsUntilItsPathIsGone) {
  const std::string path = "/tmp/colo-listen-" + std::to_string(::getpid());
  const UniqueFd listener = listen_unix(path);
  EXPECT_EQ(::fcntl(listener.get(), F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_THROW(listen_unix(path), Error);  // in use
  const UniqueFd client = connect_unix(path);
  ::unlink(path.c_str());
  EXPECT_THROW(connect_unix(path), Error);
  const UniqueFd served(::accept(listener.get(), nullptr, nullptr));
  ASSERT_EQ(::send(client.get(), "x", 1, 0), 1);
  char byte = 0;
  EXPECT_EQ(::recv(served.get(), &byte, 1, 0), 1);
  EXPECT_THROW(listen_unix(std::string(200, 'x')), Error);
}

TEST(ConnectUnix, ConnectsAndKnowsThePeer) {
  UnixListener listener(1);
  const UniqueFd fd = connect_unix(listener.path());
  EXPECT_NE(::fcntl(fd.get(), F_GETFL) & O_NONBLOCK, 0);
  EXPECT_NE(::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC, 0);
  const PeerCredentials peer = peer_credentials(fd.get());
  EXPECT_EQ(peer.pid, ::getpid());
  EXPECT_EQ(peer.uid, ::getuid());
  EXPECT_EQ(peer.gid, ::getgid());
  std::vector<gid_t> groups(65536);
  groups.resize(static_cast<std::size_t>(::getgroups(static_cast<int>(groups.size()), groups.data())));
  EXPECT_EQ(peer.groups, groups);
}

TEST(ConnectUnix, NeverWaitsAndNamesThePath) {
  EXPECT_NE(error_text("/nowhere/socket").find("/nowhere/socket: No such file"), std::string::npos);
  EXPECT_NE(error_text(std::string(200, 'x')).find("1 to 107 bytes"), std::string::npos);
  UnixListener listener(0);
  const UniqueFd waits = connect_unix(listener.path());
  EXPECT_NE(error_text(listener.path()).find("busy with another client"), std::string::npos);
}

TEST(PeerCredentials, RefusesWhatIsNoSocket) {
  const MemoryFile file = make_memory_file("no-socket");
  EXPECT_THROW(peer_credentials(file.read_write.get()), Error);
}

// Receives `count` bytes slowly, and whatever descriptors come.
std::pair<std::string, std::vector<UniqueFd>> receive(int socket, std::size_t count) {
  std::string bytes;
  std::vector<UniqueFd> fds;
  while (bytes.size() < count) {
    char buffer[1000];
    alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))];
    iovec piece{buffer, sizeof buffer};
    msghdr message{};
    message.msg_iov = &piece;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    pollfd wait{.fd = socket, .events = POLLIN, .revents = 0};
    if (::poll(&wait, 1, 10000) != 1) break;
    const ssize_t got = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (got <= 0) break;
    bytes.append(buffer, static_cast<std::size_t>(got));
    for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header)) {
      for (std::size_t at = 0; at < header->cmsg_len - CMSG_LEN(0); at += sizeof(int)) {
        int fd;
        std::memcpy(&fd, CMSG_DATA(header) + at, sizeof fd);
        fds.emplace_back(fd);
      }
    }
  }
  return {bytes, std::move(fds)};
}

ino_t inode(int fd) {
  struct stat status {};
  EXPECT_EQ(::fstat(fd, &status), 0);
  return status.st_ino;
}

TEST(SendWithFds, PassesThemOnceHoweverOftenTheSocketIsFull) {
  const auto [ours, theirs] = stream_socket_pair();
  const int small = 4096;
  ::setsockopt(ours.get(), SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
  const MemoryFile file = make_memory_file("passed");
  const int fds[] = {file.read_write.get(), file.write_only.get()};
  std::vector<std::uint8_t> bytes(300000);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::uint8_t>(i * 7);
  std::thread sender([&, socket = ours.get()] { send_with_fds(socket, bytes, fds); });
  const auto [got, got_fds] = receive(theirs.get(), bytes.size());
  sender.join();
  EXPECT_EQ(got, std::string(bytes.begin(), bytes.end()));
  ASSERT_EQ(got_fds.size(), 2u);
  EXPECT_EQ(inode(got_fds[0].get()), inode(file.read_write.get()));
  EXPECT_EQ(::fcntl(got_fds[1].get(), F_GETFL) & O_ACCMODE, O_WRONLY);
}

TEST(SendWithFds, FailsWithoutASignalWhenThePeerIsGone) {
  auto [ours, theirs] = stream_socket_pair();
  theirs.reset();
  const std::uint8_t byte = 0;
  try {
    send_with_fds(ours.get(), {&byte, 1}, {});
    FAIL() << "sent to nobody";
  } catch (const Error& error) {
    EXPECT_EQ(error.sys_errno(), EPIPE);
  }
  EXPECT_THROW(send_with_fds(ours.get(), {}, {}), Error);
}

TEST(StreamSocketPair, TakesABurstWithoutAReader) {
  const auto [ours, theirs] = stream_socket_pair();
  EXPECT_NE(::fcntl(ours.get(), F_GETFD) & FD_CLOEXEC, 0);
  int bytes = 0;
  socklen_t length = sizeof bytes;
  ASSERT_EQ(::getsockopt(theirs.get(), SOL_SOCKET, SO_SNDBUF, &bytes, &length), 0);
  int ordinary[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ordinary), 0);
  const UniqueFd first(ordinary[0]), second(ordinary[1]);
  int ordinary_bytes = 0;
  ASSERT_EQ(::getsockopt(first.get(), SOL_SOCKET, SO_SNDBUF, &ordinary_bytes, &length), 0);
  EXPECT_GE(bytes, ordinary_bytes);
}

// As QEMU saves into it: the write-only descriptor is opened once, its offset shared, and a shorter save must
// leave no old bytes behind.
TEST(MemoryFile, IsEmptyAndAtItsBeginningAfterARewind) {
  const MemoryFile file = make_memory_file("vmstate");
  ASSERT_EQ(::write(file.write_only.get(), "a long first save", 17), 17);
  rewind_memory_file(file.read_write.get(), file.write_only.get());
  ASSERT_EQ(::write(file.write_only.get(), "short", 5), 5);
  char buffer[32];
  EXPECT_EQ(::pread(file.read_write.get(), buffer, sizeof buffer, 0), 5);
  EXPECT_EQ(std::string(buffer, 5), "short");
  EXPECT_LT(::read(file.write_only.get(), buffer, 1), 0);
}

TEST(DuplicateForeignFd, IsTheOtherProcesssDescriptorWithItsOffset) {
  constexpr int kTheirs = 200;  // nothing of ours has this number
  const MemoryFile file = make_memory_file("foreign");
  testing::ChildProcess child([&](int socket) {
    char byte = 0;
    if (::dup2(file.write_only.get(), kTheirs) < 0 || ::write(kTheirs, "one", 3) != 3) return 1;
    return ::send(socket, &byte, 1, 0) == 1 && ::recv(socket, &byte, 1, 0) == 1 ? 0 : 1;
  });
  child.receive<char>();
  {
    const UniqueFd twin = duplicate_foreign_fd(child.pid(), kTheirs);
    EXPECT_NE(::fcntl(twin.get(), F_GETFD) & FD_CLOEXEC, 0);
    EXPECT_EQ(inode(twin.get()), inode(file.read_write.get()));
    EXPECT_EQ(::lseek(twin.get(), 0, SEEK_CUR), 3);
  }
  try {
    duplicate_foreign_fd(child.pid(), kTheirs + 1);
    ADD_FAILURE() << "duplicated what isn't there";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_DESCRIPTOR");
    EXPECT_EQ(error.sys_errno(), EBADF);
    EXPECT_NE(std::string(error.what()).find("descriptor 201 of process "), std::string::npos);
  }
  const pid_t pid = child.pid();
  child.send('x');
  EXPECT_EQ(child.wait(), 0);
  EXPECT_THROW(duplicate_foreign_fd(pid, 0), Error);  // gone
}

}  // namespace
}  // namespace colo
