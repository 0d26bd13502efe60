/*
 * A memory load: writes one word into each of PAGES pages of a working set four times as large, at random or
 * in order, every MS milliseconds. Usage: dirty PAGES MS [sequential]
 */
#include <string.h>
#include <sys/mman.h>

#include "util.h"

#define PAGE_BYTES 4096
#define WORKING_SET_PAGES_MAX 40000 /* 156 MiB: fits into a guest of 256 MiB. */

int main(int argc, char** argv) {
  int sequential = argc == 4 && !strcmp(argv[3], "sequential");
  if (argc < 3 || argc > 4 || (argc == 4 && !sequential)) return 64;
  long pages = atol(argv[1]), pause_ms = atol(argv[2]);
  if (pages < 1 || pages > WORKING_SET_PAGES_MAX || pause_ms < 0) return 64;
  uint64_t total = (uint64_t)(pages * 4 < WORKING_SET_PAGES_MAX ? pages * 4 : WORKING_SET_PAGES_MAX);

  char* ram = mmap(NULL, total * PAGE_BYTES, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (ram == MAP_FAILED) die("mmap");
  for (uint64_t state = 88172645463325252ULL, next = 0;;) {
    for (long i = 0; i < pages; i++) {
      uint64_t random = next_random(&state), page = sequential ? next++ : random;
      *(uint64_t*)(ram + page % total * PAGE_BYTES + (random >> 32) % 512 * 8) = random;
    }
    usleep((useconds_t)pause_ms * 1000);
  }
}
