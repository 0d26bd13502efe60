/*
 * The probe for output commit: every 5 ms it announces "SEQ SECRET" by UDP to HOST:6000 and only THEN stores
 * the secret. Whoever has seen an announcement may ask for it on UDP port 6001: "SEQ" is answered by "SEQ
 * SECRET", or by "SEQ unknown". If an announcement left before its checkpoint was safe, the guest that
 * resumes elsewhere has never made it and doesn't know that secret. Usage: announce HOST
 */
#include <poll.h>
#include <string.h>
#include <x86intrin.h>

#include "util.h"

#define ANNOUNCE_PORT 6000
#define QUERY_PORT 6001
#define ANNOUNCE_MS 5
#define SECRETS 131072 /* The last 11 minutes. */

static uint64_t secrets[SECRETS];
static uint64_t announced;

/*
 * The cycle counter is the only source that is of use here: it isn't part of what a checkpoint restores to
 * the same value. Generators in RAM, the kernel's included, would produce the lost secrets a second time
 * after a failover and hide a breach.
 */
static uint64_t make_secret(void) {
  uint64_t state = __rdtsc() | 1;
  next_random(&state);
  return next_random(&state);
}

static void announce(int fd, const struct sockaddr_in* to) {
  char text[64];
  uint64_t secret = make_secret(), sequence = announced + 1;
  int length = sprintf(text, "%llu %llu", (unsigned long long)sequence, (unsigned long long)secret);
  sendto(fd, text, (size_t)length, 0, (const struct sockaddr*)to, sizeof *to);
  secrets[sequence % SECRETS] = secret;
  announced = sequence;
}

static void answer(int fd) {
  char text[64];
  struct sockaddr_in from;
  socklen_t from_length = sizeof from;
  ssize_t n = recvfrom(fd, text, sizeof text - 1, 0, (struct sockaddr*)&from, &from_length);
  if (n <= 0) return;
  text[n] = 0;
  unsigned long long sequence = strtoull(text, NULL, 10);
  int known = sequence > 0 && sequence <= announced && announced - sequence < SECRETS;
  int length = known ? sprintf(text, "%llu %llu", sequence, (unsigned long long)secrets[sequence % SECRETS])
                     : sprintf(text, "%llu unknown", sequence);
  sendto(fd, text, (size_t)length, 0, (struct sockaddr*)&from, from_length);
}

int main(int argc, char** argv) {
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(ANNOUNCE_PORT)};
  if (argc != 2 || !inet_aton(argv[1], &to.sin_addr)) return 64;
  struct pollfd polled = {.fd = open_port(SOCK_DGRAM, QUERY_PORT), .events = POLLIN};
  go_to_background();
  for (int64_t due_ms = now_ms();;) {
    int64_t left_ms = due_ms - now_ms();
    if (poll(&polled, 1, left_ms > 0 ? (int)left_ms : 0) > 0) answer(polled.fd);
    if (now_ms() < due_ms) continue;
    announce(polled.fd, &to);
    due_ms = now_ms() + ANNOUNCE_MS;
  }
}
