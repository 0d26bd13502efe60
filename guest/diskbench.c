/*
 * What a guest's disk is worth: random writes of 4 KiB past the page cache. TCP port 5005: "DEPTH COUNT"
 * writes COUNT blocks with DEPTH of them in flight, and answers, on the console too, "diskbench depth=DEPTH
 * writes=COUNT iops=... p50_us=... p99_us=...". All by the guest's clock, which stands while the VM is
 * stopped. What the disk held is lost. Usage: diskbench DISK
 */
#define _GNU_SOURCE /* O_DIRECT */
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>

#include "aio.h"
#include "util.h"

#define PORT 5005
#define BLOCK_BYTES 4096
#define COUNT_MAX 1000000

static int disk;
static uint64_t disk_blocks, random_state = 88172645463325252ULL;
static int64_t begun_us[AIO_DEPTH_MAX];
static uint32_t latencies_us[COUNT_MAX];

static int64_t now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

static void begin_write(int slot, void* data) {
  struct iocb* block = &aio_blocks[slot];
  *block = aio_block(disk, IOCB_CMD_PWRITE, data, BLOCK_BYTES,
                     next_random(&random_state) % disk_blocks * BLOCK_BYTES);
  begun_us[slot] = now_us();
  aio_submit(1, &block);
}

static int64_t run_writes(int depth, int count, char* buffers) {
  struct io_event events[AIO_DEPTH_MAX];
  int begun = 0, ended = 0;
  int64_t start_us = now_us();
  for (; begun < depth && begun < count; begun++) begin_write(begun, buffers + begun * BLOCK_BYTES);
  while (ended < count) {
    long n = aio_reap(events);
    int64_t end_us = now_us();
    for (long i = 0; i < n; i++) {
      int slot = (int)((struct iocb*)(uintptr_t)events[i].obj - aio_blocks);
      latencies_us[ended++] = (uint32_t)(end_us - begun_us[slot]);
      if (begun++ < count) begin_write(slot, buffers + slot * BLOCK_BYTES);
    }
  }
  return now_us() - start_us;
}

static int by_size(const void* left, const void* right) {
  uint32_t a = *(const uint32_t*)left, b = *(const uint32_t*)right;
  return (a > b) - (a < b);
}

static void serve(int fd, char* buffers) {
  char line[160] = "";
  int depth, count;
  ssize_t length = recv(fd, line, sizeof line - 1, 0);
  if (length <= 0 || sscanf(line, "%d %d", &depth, &count) != 2 || depth < 1 || depth > AIO_DEPTH_MAX ||
      count < 1 || count > COUNT_MAX) {
    snprintf(line, sizeof line, "error: DEPTH COUNT is expected\n");
  } else {
    int64_t us = run_writes(depth, count, buffers);
    qsort(latencies_us, (size_t)count, sizeof *latencies_us, by_size);
    snprintf(line, sizeof line, "diskbench depth=%d writes=%d iops=%lld p50_us=%u p99_us=%u\n", depth, count,
             (long long)count * 1000000 / us, latencies_us[count / 2],
             latencies_us[(int64_t)count * 99 / 100]);
    fputs(line, stdout);
    fflush(stdout);
  }
  send(fd, line, strlen(line), MSG_NOSIGNAL);
}

int main(int argc, char** argv) {
  uint64_t bytes;
  if (argc != 2) return 64;
  disk = open(argv[1], O_RDWR | O_DIRECT | O_EXCL);
  if (disk < 0 || ioctl(disk, BLKGETSIZE64, &bytes)) die(argv[1]);
  disk_blocks = bytes / BLOCK_BYTES;
  char* buffers = aligned_pages(AIO_DEPTH_MAX * BLOCK_BYTES);
  for (size_t i = 0; i < AIO_DEPTH_MAX * BLOCK_BYTES; i++) buffers[i] = (char)next_random(&random_state);
  int listener = open_port(SOCK_STREAM, PORT);
  if (fcntl(listener, F_SETFL, 0)) die("fcntl"); /* One client after the other, waited for in accept(). */
  go_to_background();
  aio_open();
  for (;;) {
    int fd = accept(listener, NULL, NULL);
    if (fd < 0) die("accept");
    serve(fd, buffers);
    close(fd);
  }
}
