/*
 * What a network connection of the guest carries: TCP port 5007 sends as fast as it can to whoever connects,
 * port 5008 receives all that comes and says nothing.
 */
#include <poll.h>
#include <signal.h>

#include "util.h"

#define SOURCE_PORT 5007
#define SINK_PORT 5008

enum { SOURCE, SINK, KINDS };

static char buffer[65536];

/* The connection is blocking: accept() doesn't inherit the listener's mode. */
static void serve(int fd, int kind) {
  ssize_t n;
  do n = kind == SOURCE ? send(fd, buffer, sizeof buffer, MSG_NOSIGNAL) : recv(fd, buffer, sizeof buffer, 0);
  while (n > 0);
  exit(0);
}

int main(void) {
  struct pollfd polled[KINDS] = {
      [SOURCE] = {.fd = open_port(SOCK_STREAM, SOURCE_PORT), .events = POLLIN},
      [SINK] = {.fd = open_port(SOCK_STREAM, SINK_PORT), .events = POLLIN},
  };
  uint64_t state = 88172645463325252ULL;
  for (size_t i = 0; i < sizeof buffer; i++) buffer[i] = (char)next_random(&state);
  go_to_background();
  signal(SIGCHLD, SIG_IGN); /* Children that have ended leave nothing behind. */
  for (;;) {
    if (poll(polled, KINDS, -1) < 0) die("poll");
    for (int kind = 0; kind < KINDS; kind++) {
      int fd = polled[kind].revents ? accept(polled[kind].fd, NULL, NULL) : -1;
      if (fd < 0) continue;
      if (fork() == 0) serve(fd, kind);
      close(fd);
    }
  }
}
