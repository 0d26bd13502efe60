#include "../core/acceptor.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <chrono>
#include <cstring>
#include <vector>

#include "../core/error.h"
#include "../core/unique_fd.h"
#include "acceptor_harness.h"

namespace colo {
namespace {

using testing::AcceptorLog;

UniqueFd connect_to(std::uint16_t port) {
  UniqueFd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0)
      << std::strerror(errno);
  return fd;
}

void send_all(const UniqueFd& fd, const std::string& bytes) {
  ASSERT_EQ(::send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
}

bool closed_by_peer(const UniqueFd& fd) {
  pollfd wait{.fd = fd.get(), .events = POLLIN, .revents = 0};
  char byte;
  return ::poll(&wait, 1, 10000) == 1 && ::recv(fd.get(), &byte, 1, 0) <= 0;
}

std::string preface(const std::string& magic) {
  return magic + std::string(kPrefaceBytes - magic.size(), 'p');
}

TEST(Acceptor, TellsControlFromBulkAndReadsNothingPastThePreface) {
  AcceptorLog log;
  Acceptor acceptor("127.0.0.1", 0, log.events());
  ASSERT_GT(acceptor.port(), 0);
  const UniqueFd control = connect_to(acceptor.port());
  send_all(control, preface("COLOCTL1") + "rest");
  ASSERT_TRUE(log.wait(1, 0));
  const UniqueFd bulk = connect_to(acceptor.port());
  for (const char byte : preface("COLOBLK1")) send_all(bulk, std::string(1, byte));
  ASSERT_TRUE(log.wait(2, 0));
  EXPECT_EQ(log.accepted[0].link, Acceptor::Link::control);
  EXPECT_EQ(log.accepted[0].preface, preface("COLOCTL1"));
  EXPECT_EQ(log.accepted[0].peer.substr(0, 10), "127.0.0.1:");
  EXPECT_EQ(log.accepted[1].link, Acceptor::Link::bulk);
  EXPECT_EQ(log.accepted[1].preface, preface("COLOBLK1"));

  char rest[16];
  const int fd = log.accepted[0].connection.fd.get();
  ASSERT_EQ(::recv(fd, rest, sizeof rest, 0), 4);
  EXPECT_EQ(std::string(rest, 4), "rest");
  EXPECT_NE(::fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
  EXPECT_NE(::fcntl(fd, F_GETFD) & FD_CLOEXEC, 0);
  int no_delay = 0;
  socklen_t length = sizeof no_delay;
  ASSERT_EQ(::getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &no_delay, &length), 0);
  EXPECT_NE(no_delay, 0);
}

TEST(Acceptor, TellsADoctorFromAPeer) {
  AcceptorLog log;
  Acceptor acceptor("127.0.0.1", 0, log.events());
  const UniqueFd doctor = connect_to(acceptor.port());
  send_all(doctor, preface("COLODOC1"));
  ASSERT_TRUE(log.wait(1, 0));
  EXPECT_EQ(log.accepted[0].link, Acceptor::Link::doctor);
}

TEST(Acceptor, RefusesAStrangerAtItsFirstWrongByte) {
  AcceptorLog log;
  Acceptor acceptor("127.0.0.1", 0, log.events());
  const UniqueFd http = connect_to(acceptor.port());
  send_all(http, "GET /");
  ASSERT_TRUE(log.wait(0, 1));
  EXPECT_EQ(log.refused[0], "the connection's preface is not colo-agent's");
  EXPECT_TRUE(closed_by_peer(http));
}

TEST(Acceptor, RefusesAPrefaceThatIsCutOff) {
  AcceptorLog log;
  Acceptor acceptor("127.0.0.1", 0, log.events());
  UniqueFd cut = connect_to(acceptor.port());
  send_all(cut, preface("COLOBLK1").substr(0, 63));
  cut.reset();
  ASSERT_TRUE(log.wait(0, 1));
  EXPECT_EQ(log.refused[0], "the connection closed before its preface was whole");
}

TEST(Acceptor, RefusesSilenceAfterTheTimeLimit) {
  AcceptorLog log;
  Acceptor acceptor("127.0.0.1", 0, log.events(), nullptr, 30);
  const UniqueFd silent = connect_to(acceptor.port());
  ASSERT_TRUE(log.wait(0, 1));
  EXPECT_EQ(log.refused[0], "no preface within 30 ms");
  EXPECT_TRUE(closed_by_peer(silent));
}

TEST(Acceptor, TheOldestMakesRoomWhenTooManyWait) {
  AcceptorLog log;
  Acceptor acceptor("127.0.0.1", 0, log.events(), nullptr, 60000, 2);
  const UniqueFd first = connect_to(acceptor.port());
  const UniqueFd second = connect_to(acceptor.port());
  const UniqueFd third = connect_to(acceptor.port());
  ASSERT_TRUE(log.wait(0, 1));
  EXPECT_EQ(log.refused[0], "too many connections wait for their preface");
  EXPECT_TRUE(closed_by_peer(first));
  send_all(second, preface("COLOCTL1"));
  send_all(third, preface("COLOCTL1"));
  EXPECT_TRUE(log.wait(2, 1));
}

// Running out of descriptors is somebody's passing fault: the connection waits in the backlog until there is
// one again.
TEST(Acceptor, OutlivesAShortageOfDescriptors) {
  AcceptorLog log;
  Acceptor acceptor("127.0.0.1", 0, log.events());
  const UniqueFd client = connect_to(acceptor.port());
  send_all(client, preface("COLOCTL1"));
  ASSERT_TRUE(log.wait(1, 0));
  const UniqueFd starved(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  rlimit limit{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none{.rlim_cur = 0, .rlim_max = limit.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &none), 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(acceptor.port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int connected = ::connect(starved.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
  ::poll(nullptr, 0, 20);  // gives the thread the chance to run into the shortage; right either way
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  ASSERT_EQ(connected, 0);
  send_all(starved, preface("COLOBLK1"));
  EXPECT_TRUE(log.wait(2, 0));
}

int listener_at(std::uint16_t port) {
  for (int fd = 0; fd < 1024; ++fd) {
    int listens = 0;
    socklen_t length = sizeof listens;
    sockaddr_in address{};
    socklen_t address_length = sizeof address;
    if (::getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && listens == 1 &&
        ::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &address_length) == 0 &&
        address.sin_family == AF_INET && ntohs(address.sin_port) == port)
      return fd;
  }
  return -1;
}

// As accept(2) says it of a listener that listens no more: for ever, and to every call.
TEST(Acceptor, AnErrorThatStaysDoesNotStopTheThread) {
  AcceptorLog log;
  Acceptor acceptor("127.0.0.1", 0, log.events());
  const UniqueFd slow = connect_to(acceptor.port()), quick = connect_to(acceptor.port());
  send_all(quick, preface("COLOCTL1"));
  ASSERT_TRUE(log.wait(1, 0));  // and the earlier one is accepted, too
  ASSERT_EQ(::shutdown(listener_at(acceptor.port()), SHUT_RDWR), 0);
  ::poll(nullptr, 0, 20);  // gives the thread the chance to run into the error; right either way
  send_all(slow, preface("COLOBLK1"));
  EXPECT_TRUE(log.wait(2, 0));
}

TEST(Acceptor, NamesTheAddressItCannotListenOn) {
  AcceptorLog log;
  const Acceptor first("127.0.0.1", 0, log.events());
  try {
    const Acceptor second("127.0.0.1", first.port(), log.events());
    FAIL() << "two listeners on one port";
  } catch (const Error& error) {
    EXPECT_STREQ(error.code(), "ERR_COLO_LISTEN");
    EXPECT_EQ(error.sys_errno(), EADDRINUSE);
    EXPECT_NE(std::string(error.what()).find("127.0.0.1:" + std::to_string(first.port())), std::string::npos);
  }
}

TEST(Acceptor, CloseEndsListeningAndWaitingConnections) {
  AcceptorLog log;
  Acceptor acceptor("127.0.0.1", 0, log.events(), nullptr, 60000);
  const UniqueFd waiting = connect_to(acceptor.port());
  send_all(waiting, "COLO");
  acceptor.close();
  acceptor.close();
  EXPECT_TRUE(closed_by_peer(waiting));
}

}  // namespace
}  // namespace colo
