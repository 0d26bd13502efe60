/*
 * Preloaded into QEMU, lets it touch one kind of memory no more once that is free: what calloc() gave for WATCHED_BYTES, which must be a multiple of a
 * page. QEMU's own bitmap of a mirror job's writes in flight is so found by a disk whose size makes it as large.
 */
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

/* glibc's own, under the names by which whoever replaces them can still call them. */
extern void *__libc_calloc(size_t count, size_t size);
extern void __libc_free(void *memory);

enum { MAX_BLOCKS = 64 };
static void *_Atomic blocks[MAX_BLOCKS];
static atomic_uint block_count;

void *calloc(size_t count, size_t size) {
  if (count != 1 || size != WATCHED_BYTES || block_count >= MAX_BLOCKS) return __libc_calloc(count, size);
  void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return NULL;
  blocks[atomic_fetch_add(&block_count, 1) % MAX_BLOCKS] = memory;
  return memory;
}

void free(void *memory) {
  for (unsigned i = 0; memory != NULL && i < block_count && i < MAX_BLOCKS; i++) {
    if (blocks[i] != memory) continue;
    mprotect(memory, WATCHED_BYTES, PROT_NONE);
    return;
  }
  __libc_free(memory);
}
