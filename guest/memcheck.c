/*
 * The guest's own proof that its memory is that of one moment: a structure over MIB MiB in which every page
 * carries a sequence number and a checksum, and a root knows the sequence number of each page and the sum of
 * all checksums. Every round updates some pages and verifies others. A lost page, a page of another epoch or
 * a half-written one breaks it, at the latest when all of it is verified.
 *
 * Console: "memcheck ok ROUND" about every 0.5 s, or "MEMCHECK FAILED ..." from the first mismatch on, for
 * good. TCP port 5002: verifies all pages and answers "ok ROUND" or "failed ...". Usage: memcheck MIB
 */
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>

#include "util.h"

#define PORT 5002
#define ROUND_MS 20
#define REPORT_ROUNDS 25
#define UPDATES 32 /* Pages updated in a round. */
#define CHECKS 64  /* Pages verified in a round. */
#define WORDS 510

struct page {
  uint64_t sequence, words[WORDS], checksum;
};

_Static_assert(sizeof(struct page) == 4096, "one structure a page");

static struct page* pages;
static uint64_t page_count;
static uint64_t round_number, random_state = 88172645463325252ULL;
static struct { uint64_t sum, *sequences; } root;
static char failure[160];

static uint64_t checksum_of(const struct page* page, uint64_t index) {
  uint64_t sum = index + 1;
  for (size_t i = 0; i < WORDS; i++) sum = sum * 31 + page->words[i];
  return sum * 31 + page->sequence;
}

static void fail(const char* format, ...) {
  if (*failure) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(failure, sizeof failure, format, arguments);
  va_end(arguments);
}

static void verify_page(uint64_t index) {
  const struct page* page = &pages[index];
  if (page->checksum != checksum_of(page, index))
    fail("page %llu: wrong checksum", (unsigned long long)index);
  else if (page->sequence != root.sequences[index])
    fail("page %llu: sequence %llu, the root says %llu", (unsigned long long)index,
         (unsigned long long)page->sequence, (unsigned long long)root.sequences[index]);
}

static void verify_all(void) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i < page_count; i++) {
    verify_page(i);
    sum += pages[i].checksum;
  }
  if (sum != root.sum) fail("the sum of all checksums differs from the root's");
}

/* Half of the updates change one word, the others the whole page: sparse and dense differences for the
 * checkpoint's encoder. */
static void update_page(uint64_t index) {
  struct page* page = &pages[index];
  uint64_t random = next_random(&random_state);
  verify_page(index);
  root.sum -= page->checksum;
  if (random & 1)
    page->words[(random >> 1) % WORDS] = random;
  else
    for (size_t i = 0; i < WORDS; i++) page->words[i] = random * (i + 1);
  page->sequence++;
  page->checksum = checksum_of(page, index);
  root.sequences[index]++;
  root.sum += page->checksum;
}

static void* allocate(uint64_t bytes) {
  void* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap");
  return memory;
}

static void answer(int listener) {
  char line[sizeof failure + 32];
  int fd = accept(listener, NULL, NULL);
  if (fd < 0) return;
  verify_all();
  int length = *failure ? snprintf(line, sizeof line, "failed %s\n", failure)
                        : snprintf(line, sizeof line, "ok %llu\n", (unsigned long long)round_number);
  send(fd, line, (size_t)length, MSG_NOSIGNAL);
  close(fd);
}

static void run_round(void) {
  round_number++;
  for (int i = 0; i < UPDATES; i++) update_page(next_random(&random_state) % page_count);
  for (uint64_t i = 0; i < CHECKS; i++) verify_page((round_number * CHECKS + i) % page_count);
  if (round_number % REPORT_ROUNDS) return;
  if (*failure)
    printf("MEMCHECK FAILED %s\n", failure);
  else
    printf("memcheck ok %llu\n", (unsigned long long)round_number);
  fflush(stdout);
}

int main(int argc, char** argv) {
  if (argc != 2 || atol(argv[1]) < 1) return 64;
  page_count = (uint64_t)atol(argv[1]) * 256;
  pages = allocate(page_count * sizeof *pages);
  root.sequences = allocate(page_count * sizeof *root.sequences);
  for (uint64_t i = 0; i < page_count; i++) root.sum += pages[i].checksum = checksum_of(&pages[i], i);

  struct pollfd polled = {.fd = open_port(SOCK_STREAM, PORT), .events = POLLIN};
  go_to_background();
  for (int64_t due_ms = now_ms();;) {
    int64_t left_ms = due_ms - now_ms();
    if (poll(&polled, 1, left_ms > 0 ? (int)left_ms : 0) > 0) answer(polled.fd);
    if (now_ms() < due_ms) continue;
    run_round();
    due_ms = now_ms() + ROUND_MS;
  }
}
