/*
 * The guest's own proof that its disks are of the same moment as its memory. Memory knows for every sector of
 * every disk which step wrote it, and a sector holds a pattern that only that step makes. Step n compares the
 * counter on each disk with the one in memory and puts n there; beside that it writes, reads, zeroes and
 * discards ranges of many sizes, one in each of the disk's areas and all at once, and compares what it reads.
 * A disk that is older or newer than memory, or a write that was lost, torn or put elsewhere, breaks it.
 *
 * The disks must hold nothing but zeros at the start. Console: "diskcheck ok STEP" about every 0.5 s, or
 * "DISKCHECK FAILED ..." from the first mismatch on, for good. TCP port 5003: reads all of every disk and
 * answers "steps=N writes=N mismatches=N", then a blank and the first mismatch if there is one. Usage:
 * diskcheck MS DISK...   (a step every MS milliseconds)
 */
#define _GNU_SOURCE /* O_DIRECT */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ioctl.h>

#include "aio.h"
#include "util.h"

#define PORT 5003
#define REPORT_MS 500
#define DISKS_MAX 4
#define AREAS 4
#define SECTOR_BYTES 512
#define SECTOR_WORDS (SECTOR_BYTES / sizeof(uint64_t))
#define RANGE_SECTORS_MAX 2048
#define COUNTER_SECTOR 0
#define FLUSH_STEPS 8
#define ZEROING_STEPS 16
#define DISCARD_STEPS 32

struct range {
  uint64_t first, sectors;
};

struct disk {
  const char* name;
  int fd;
  uint64_t sectors;
  uint32_t* steps; /* The step that wrote each sector; 0 for one that is zeros. */
  uint64_t* counter;
  /* One transfer in each: they are in flight together and so must not meet. */
  struct area {
    struct range range;
    int is_write;
    uint64_t* buffer;
  } areas[AREAS];
};

static struct disk disks[DISKS_MAX];
static int disk_count;
static uint64_t step, writes, mismatches, random_state = 88172645463325252ULL;
static char failure[160];

static void fail(const char* format, ...) {
  mismatches++;
  if (*failure) return;
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(failure, sizeof failure, format, arguments);
  va_end(arguments);
}

static void make_sector(uint64_t* words, uint64_t sector, uint64_t by_step) {
  if (by_step == 0) {
    memset(words, 0, SECTOR_BYTES);
    return;
  }
  words[0] = by_step;
  words[1] = sector;
  uint64_t value = (by_step << 32 | sector) * 0x9e3779b97f4a7c15ULL;
  for (size_t i = 2; i < SECTOR_WORDS; i++) words[i] = value += 0x632be59bd9b4e019ULL;
}

static int holds(const uint64_t* words, uint64_t sector, uint64_t by_step) {
  uint64_t expected[SECTOR_WORDS];
  make_sector(expected, sector, by_step);
  return !memcmp(words, expected, SECTOR_BYTES);
}

static void verify(const struct disk* disk, struct range range, const uint64_t* data) {
  for (uint64_t i = 0; i < range.sectors; i++, data += SECTOR_WORDS) {
    uint64_t sector = range.first + i, by_step = disk->steps[sector];
    if (holds(data, sector, by_step)) continue;
    int is_older_or_newer = data[0] <= UINT32_MAX && holds(data, sector, data[0]);
    if (is_older_or_newer)
      fail("%s sector %llu: of step %llu, memory says %llu (now %llu)", disk->name,
           (unsigned long long)sector, (unsigned long long)data[0], (unsigned long long)by_step,
           (unsigned long long)step);
    else
      fail("%s sector %llu: of no step, memory says %llu (now %llu)", disk->name, (unsigned long long)sector,
           (unsigned long long)by_step, (unsigned long long)step);
  }
}

/* Most are small, some have the size of a database's page or of a file's extent, a few are larger than what a
 * block layer carries at once. */
static uint64_t random_length(void) {
  static const uint64_t lengths_max[] = {1, 8, 8, 8, 16, 64, 256, RANGE_SECTORS_MAX};
  uint64_t random = next_random(&random_state);
  return 1 + (random >> 8) % lengths_max[random % 8];
}

static struct range random_range(const struct disk* disk, int area) {
  uint64_t area_sectors = (disk->sectors - 1) / AREAS, length = random_length();
  uint64_t offset = next_random(&random_state) % (area_sectors - length + 1);
  return (struct range){COUNTER_SECTOR + 1 + (uint64_t)area * area_sectors + offset, length};
}

static void transfer(const struct disk* disk, struct range range, uint64_t* data, int is_write) {
  for (uint64_t i = 0; is_write && i < range.sectors; i++) {
    disk->steps[range.first + i] = (uint32_t)step;
    make_sector(data + i * SECTOR_WORDS, range.first + i, step);
  }
  writes += (uint64_t)is_write;
  aio_add(disk->fd, is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD, data, range.sectors * SECTOR_BYTES,
          range.first * SECTOR_BYTES);
}

/* What a disk holds after a discard is its own choice between the old and zeros; but once read, it stays. */
static void zero_or_discard(struct disk* disk, unsigned long request) {
  struct area* area = &disk->areas[0];
  struct range range = random_range(disk, (int)(next_random(&random_state) % AREAS));
  uint64_t bytes[] = {range.first * SECTOR_BYTES, range.sectors * SECTOR_BYTES};
  uint32_t* steps = disk->steps + range.first;
  if (ioctl(disk->fd, request, bytes)) {
    if (request == BLKDISCARD && errno == EOPNOTSUPP) return;
    die("zeroing or discarding");
  }
  writes++;
  if (request == BLKZEROOUT) memset(steps, 0, range.sectors * sizeof *steps);
  transfer(disk, range, area->buffer, 0);
  aio_run();
  for (uint64_t i = 0; request == BLKDISCARD && i < range.sectors; i++)
    if (holds(area->buffer + i * SECTOR_WORDS, range.first + i, 0)) steps[i] = 0;
  verify(disk, range, area->buffer);
}

static void check_counters(void) {
  static const struct range counter = {COUNTER_SECTOR, 1};
  for (int i = 0; i < disk_count; i++) transfer(&disks[i], counter, disks[i].counter, 0);
  aio_run();
  for (int i = 0; i < disk_count; i++) verify(&disks[i], counter, disks[i].counter);
}

static void run_step(void) {
  check_counters();
  step++;
  for (struct disk* disk = disks; disk < disks + disk_count; disk++) {
    transfer(disk, (struct range){COUNTER_SECTOR, 1}, disk->counter, 1);
    for (int i = 0; i < AREAS; i++) {
      struct area* area = &disk->areas[i];
      area->range = random_range(disk, i);
      area->is_write = next_random(&random_state) % 8 < 5;
      transfer(disk, area->range, area->buffer, area->is_write);
    }
  }
  aio_run();
  for (struct disk* disk = disks; disk < disks + disk_count; disk++) {
    for (int i = 0; i < AREAS; i++)
      if (!disk->areas[i].is_write) verify(disk, disk->areas[i].range, disk->areas[i].buffer);
    if (step % FLUSH_STEPS == 0 && fdatasync(disk->fd)) die("fdatasync");
    if (step % ZEROING_STEPS == 1) zero_or_discard(disk, BLKZEROOUT);
    if (step % DISCARD_STEPS == 2) zero_or_discard(disk, BLKDISCARD);
  }
}

static void verify_all(void) {
  for (struct disk* disk = disks; disk < disks + disk_count; disk++) {
    uint64_t* data = disk->areas[0].buffer;
    for (struct range range = {0, 0}; range.first < disk->sectors; range.first += range.sectors) {
      uint64_t left = disk->sectors - range.first;
      range.sectors = left < RANGE_SECTORS_MAX ? left : RANGE_SECTORS_MAX;
      transfer(disk, range, data, 0);
      aio_run();
      verify(disk, range, data);
    }
  }
}

static void answer(int listener) {
  char line[sizeof failure + 128];
  int fd = accept(listener, NULL, NULL);
  if (fd < 0) return;
  verify_all();
  int length =
      snprintf(line, sizeof line, "steps=%llu writes=%llu mismatches=%llu%s%s\n", (unsigned long long)step,
               (unsigned long long)writes, (unsigned long long)mismatches, *failure ? " " : "", failure);
  send(fd, line, (size_t)length, MSG_NOSIGNAL);
  close(fd);
}

static void report(void) {
  if (*failure)
    printf("DISKCHECK FAILED %s\n", failure);
  else
    printf("diskcheck ok %llu\n", (unsigned long long)step);
  fflush(stdout);
}

static void open_disk(const char* path) {
  struct disk* disk = &disks[disk_count++];
  uint64_t bytes;
  disk->name = path;
  disk->fd = open(path, O_RDWR | O_DIRECT | O_EXCL);
  if (disk->fd < 0 || ioctl(disk->fd, BLKGETSIZE64, &bytes)) die(path);
  disk->sectors = bytes / SECTOR_BYTES;
  if (disk->sectors <= AREAS * RANGE_SECTORS_MAX) die("a disk that is too small");
  disk->steps = calloc(disk->sectors, sizeof *disk->steps);
  if (!disk->steps) die("calloc");
  disk->counter = aligned_pages(SECTOR_BYTES);
  for (int i = 0; i < AREAS; i++) disk->areas[i].buffer = aligned_pages(RANGE_SECTORS_MAX * SECTOR_BYTES);
}

int main(int argc, char** argv) {
  if (argc < 3 || argc > 2 + DISKS_MAX || atol(argv[1]) < 1) return 64;
  int step_ms = atoi(argv[1]);
  for (int i = 2; i < argc; i++) open_disk(argv[i]);
  struct pollfd polled = {.fd = open_port(SOCK_STREAM, PORT), .events = POLLIN};
  go_to_background();
  aio_open(); /* Not before: a child doesn't inherit it. */
  for (int64_t due_ms = now_ms(), report_ms = due_ms;;) {
    int64_t left_ms = due_ms - now_ms();
    if (poll(&polled, 1, left_ms > 0 ? (int)left_ms : 0) > 0) answer(polled.fd);
    if (now_ms() < due_ms) continue;
    run_step();
    due_ms = now_ms() + step_ms;
    if (now_ms() < report_ms) continue;
    report();
    report_ms = now_ms() + REPORT_MS;
  }
}
