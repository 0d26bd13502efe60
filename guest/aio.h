/* Reads and writes that are in flight together, by Linux's own system calls (io_submit(2)). */
#ifndef COLO_GUEST_AIO_H
#define COLO_GUEST_AIO_H

#include <errno.h>
#include <linux/aio_abi.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "util.h"

#define AIO_DEPTH_MAX 32

static aio_context_t aio_context;
static struct iocb aio_blocks[AIO_DEPTH_MAX];
static struct iocb* aio_added[AIO_DEPTH_MAX];
static long aio_count;

/* To be called after a fork: a context belongs to the process that made it. */
static inline void aio_open(void) {
  if (syscall(SYS_io_setup, AIO_DEPTH_MAX, &aio_context)) die("io_setup");
}

/* Memory that O_DIRECT takes. */
static inline void* aligned_pages(size_t bytes) {
  void* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) die("mmap");
  return memory;
}

static inline void aio_submit(long count, struct iocb** blocks) {
  for (long done = 0; done < count;) {
    long n = syscall(SYS_io_submit, aio_context, count - done, blocks + done);
    if (n <= 0) die("io_submit");
    done += n;
  }
}

/* Waits for at least one; a transfer that failed or fell short ends the program. */
static inline long aio_reap(struct io_event* events) {
  long n;
  do n = syscall(SYS_io_getevents, aio_context, 1, AIO_DEPTH_MAX, events, NULL);
  while (n < 0 && errno == EINTR);
  if (n <= 0) die("io_getevents");
  for (long i = 0; i < n; i++) {
    const struct iocb* block = (const struct iocb*)(uintptr_t)events[i].obj;
    if (events[i].res == (int64_t)block->aio_nbytes) continue;
    printf("GUEST-FAILED I/O: %lld of %llu bytes at %lld\n", (long long)events[i].res,
           (unsigned long long)block->aio_nbytes, (long long)block->aio_offset);
    exit(1);
  }
  return n;
}

static inline struct iocb aio_block(int fd, uint16_t command, void* data, uint64_t bytes, uint64_t offset) {
  return (struct iocb){.aio_fildes = (uint32_t)fd,
                       .aio_lio_opcode = command,
                       .aio_buf = (uintptr_t)data,
                       .aio_nbytes = bytes,
                       .aio_offset = (int64_t)offset};
}

/* One more transfer for the next aio_run(), at most AIO_DEPTH_MAX. */
static inline void aio_add(int fd, uint16_t command, void* data, uint64_t bytes, uint64_t offset) {
  aio_blocks[aio_count] = aio_block(fd, command, data, bytes, offset);
  aio_added[aio_count] = &aio_blocks[aio_count];
  aio_count++;
}

/* Begins all that were added, together, and returns when all have ended. */
static inline void aio_run(void) {
  struct io_event events[AIO_DEPTH_MAX];
  aio_submit(aio_count, aio_added);
  for (long done = 0; done < aio_count;) done += aio_reap(events);
  aio_count = 0;
}

#endif
