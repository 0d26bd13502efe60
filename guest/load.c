/*
 * Memory loads that can be changed while the guest runs. TCP port 5006, a line a request: "random PAGES MS"
 * writes 8 bytes into each of PAGES pages, at random in a working set four times as large, every MS
 * milliseconds; "sequential PAGES MS" writes all of PAGES pages, one after the other, in a working set of 64
 * MiB; "idle" ends either. They are answered by "ok". "progress" is answered by how many rounds the load has
 * made since it began.
 */
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "util.h"

#define PORT 5006
#define PAGE_BYTES 4096
#define WORKING_SET_PAGES_MAX 40000 /* 156 MiB: fits into a guest of 256 MiB. */
#define SEQUENTIAL_PAGES 16384

enum kind { IDLE, RANDOM, SEQUENTIAL };

static enum kind kind = IDLE;
static long pages, period_ms;
static uint64_t total, next_page, rounds, random_state = 88172645463325252ULL;
static char* ram;

/* Populated at once, so that no round takes the time of page faults. */
static void take_memory(uint64_t wanted) {
  if (ram) munmap(ram, total * PAGE_BYTES);
  total = wanted;
  ram = mmap(NULL, total * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1,
             0);
  if (ram == MAP_FAILED) die("mmap");
}

static void run_round(void) {
  for (long i = 0; i < pages; i++) {
    uint64_t random = next_random(&random_state);
    if (kind == RANDOM)
      *(uint64_t*)(ram + random % total * PAGE_BYTES + (random >> 32) % 512 * 8) = random;
    else
      memset(ram + next_page++ % total * PAGE_BYTES, (int)random, PAGE_BYTES);
  }
  rounds++;
}

/* Returns whether the load is one that can be made. */
static int begin(enum kind wanted) {
  if (pages < 1 || pages > WORKING_SET_PAGES_MAX || period_ms < 0) return 0;
  uint64_t set = wanted == SEQUENTIAL ? SEQUENTIAL_PAGES : (uint64_t)pages * 4;
  take_memory(set < WORKING_SET_PAGES_MAX ? set : WORKING_SET_PAGES_MAX);
  kind = wanted;
  rounds = next_page = 0;
  return 1;
}

static void answer(int listener) {
  char line[64] = "";
  int fd = accept(listener, NULL, NULL), ok = 1;
  if (fd < 0) return;
  ssize_t length = recv(fd, line, sizeof line - 1, 0);
  if (length <= 0) {
    close(fd);
    return;
  }
  if (!strcmp(line, "progress\n")) {
    snprintf(line, sizeof line, "rounds %llu\n", (unsigned long long)rounds);
  } else {
    if (!strcmp(line, "idle\n"))
      kind = IDLE;
    else if (sscanf(line, "random %ld %ld", &pages, &period_ms) == 2)
      ok = begin(RANDOM);
    else if (sscanf(line, "sequential %ld %ld", &pages, &period_ms) == 2)
      ok = begin(SEQUENTIAL);
    else
      ok = 0;
    snprintf(line, sizeof line, ok ? "ok\n" : "error: no such load\n");
  }
  send(fd, line, strlen(line), MSG_NOSIGNAL);
  close(fd);
}

int main(void) {
  struct pollfd polled = {.fd = open_port(SOCK_STREAM, PORT), .events = POLLIN};
  go_to_background();
  for (int64_t due_ms = now_ms();;) {
    int64_t left_ms = due_ms - now_ms();
    int wait_ms = kind == IDLE ? -1 : left_ms > 0 ? (int)left_ms : 0;
    if (poll(&polled, 1, wait_ms) > 0) answer(polled.fd);
    if (kind == IDLE || now_ms() < due_ms) continue;
    run_round();
    /* A round that took too long isn't made up for: the load would come in bursts. */
    due_ms += period_ms;
    if (due_ms < now_ms()) due_ms = now_ms();
  }
}
