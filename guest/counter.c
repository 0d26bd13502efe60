/*
 * The TCP streams whose continuity the tests check: on port 5000 every connection gets the lines "n=1",
 * "n=2", ... one every MS milliseconds; port 5001 sends back what it receives. One process, so that one failover moves
 * all connections. Usage: counter MS
 */
#define _GNU_SOURCE /* accept4 */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "util.h"

#define COUNTER_PORT 5000
#define ECHO_PORT 5001
#define CONNECTIONS_MAX 64

enum { COUNTER, ECHO, KINDS };

struct connection {
  int fd, kind;
  uint64_t lines;
  int64_t due_ms;      /* When a COUNTER's next line is written. */
  size_t length, sent; /* What of `buffer` has to leave, and what has left. A line cut short by a full socket
                          is finished, never lost. */
  char buffer[4096];
};

static struct connection connections[CONNECTIONS_MAX];
static int connection_count;
static int64_t line_ms;

static void accept_all(int listener, int kind) {
  int fd, on = 1;
  while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    if (connection_count == CONNECTIONS_MAX) {
      close(fd);
      continue;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct connection* new = &connections[connection_count++];
    memset(new, 0, sizeof *new);
    new->fd = fd;
    new->kind = kind;
    new->due_ms = now_ms();
  }
}

/* Returns false when the connection is over. */
static int flush(struct connection* c) {
  while (c->sent < c->length) {
    ssize_t n = send(c->fd, c->buffer + c->sent, c->length - c->sent, MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN;
    c->sent += (size_t)n;
  }
  c->length = c->sent = 0;
  return 1;
}

static int serve(struct connection* c, short events) {
  if (!flush(c)) return 0;
  if (c->kind == COUNTER && !c->length && now_ms() >= c->due_ms) {
    c->length = (size_t)sprintf(c->buffer, "n=%llu\n", (unsigned long long)++c->lines);
    /* Counted from now: after a stop of the VM the lines must not come in a burst that hides the
     * interruption. */
    c->due_ms = now_ms() + line_ms;
    if (!flush(c)) return 0;
  }
  if (!(events & (POLLIN | POLLHUP | POLLERR)) || c->length) return 1;
  ssize_t n = recv(c->fd, c->buffer, sizeof c->buffer, 0);
  if (n <= 0) return n < 0 && errno == EAGAIN;
  c->length = c->kind == ECHO ? (size_t)n : 0;
  return flush(c);
}

static int wait_for_events(struct pollfd* polled) {
  int64_t now = now_ms(), wait_ms = -1;
  for (int i = 0; i < connection_count; i++) {
    struct connection* c = &connections[i];
    polled[KINDS + i] = (struct pollfd){.fd = c->fd, .events = c->length ? POLLOUT : POLLIN};
    if (c->kind != COUNTER || c->length) continue;
    int64_t left_ms = c->due_ms > now ? c->due_ms - now : 0;
    if (wait_ms < 0 || left_ms < wait_ms) wait_ms = left_ms;
  }
  return poll(polled, (nfds_t)(KINDS + connection_count), (int)wait_ms);
}

int main(int argc, char** argv) {
  if (argc != 2 || (line_ms = atol(argv[1])) < 1) return 64;
  struct pollfd polled[KINDS + CONNECTIONS_MAX] = {
      [COUNTER] = {.fd = open_port(SOCK_STREAM, COUNTER_PORT), .events = POLLIN},
      [ECHO] = {.fd = open_port(SOCK_STREAM, ECHO_PORT), .events = POLLIN},
  };
  go_to_background();
  for (;;) {
    if (wait_for_events(polled) < 0) die("poll");
    /* From the end, because the last connection takes the place of one that is over. */
    for (int i = connection_count - 1; i >= 0; i--) {
      if (serve(&connections[i], polled[KINDS + i].revents)) continue;
      close(connections[i].fd);
      connections[i] = connections[--connection_count];
    }
    for (int kind = 0; kind < KINDS; kind++)
      if (polled[kind].revents) accept_all(polled[kind].fd, kind);
  }
}
