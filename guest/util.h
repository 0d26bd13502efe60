/* What the guest's programs share: sockets that listen, a clock, and random numbers. */
#ifndef COLO_GUEST_UTIL_H
#define COLO_GUEST_UTIL_H

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static inline void die(const char* what) {
  perror(what);
  exit(1);
}

/* A non-blocking socket on every address of the guest; SOCK_STREAM listens at once. */
static inline int open_port(int type, uint16_t port) {
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
  int fd = socket(AF_INET, type | SOCK_NONBLOCK, 0), on = 1;
  if (fd < 0) die("socket");
  if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on)) die("setsockopt");
  if (bind(fd, (struct sockaddr*)&address, sizeof address)) die("bind");
  if (type == SOCK_STREAM && listen(fd, 64)) die("listen");
  return fd;
}

/* To be called when the ports are open: init starts the programs one after the other, and the guest is ready
 * when the last one returns. */
static inline void go_to_background(void) {
  if (daemon(1, 1)) die("daemon");
}

static inline int64_t now_ms(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* xorshift64 (Marsaglia 2003): fast under emulation; `state` must not be zero. */
static inline uint64_t next_random(uint64_t* state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

#endif
