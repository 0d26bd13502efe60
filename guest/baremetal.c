/*
 * A bare-metal guest (32-bit multiboot) for the many short tests: it is up at once under any accelerator,
 * also under a KVM that has no hardware virtualisation beneath it and runs Linux far too slowly.
 *
 * Every 20 ms tick it checks that each of PAGES pages still holds what the last round wrote and writes the
 * next round's value. Each LETTER_ROUNDS rounds it sends the next letter of A..P on COM1; on a mismatch it
 * sends '!' and stops for good. A page that was lost or restored from another epoch is therefore found by the
 * guest itself, and a frozen guest falls silent.
 *
 * The multiboot command line may say "pages=N" (default 256) and "span=MIB" (default 8), the range over which
 * they are spread.
 */
#include <stdint.h>

#define TICK_HZ 50
#define LETTER_ROUNDS 5
#define FIRST_PAGE 0x200000 /* Above the program, which the boot loader puts at 1 MiB. */
#define SPAN_MIB_MAX 48     /* The guest must fit into 64 MiB. */

/* The layout of the Multiboot Specification 0.6.96, 3.3: flags at 0, the command line's address at 16 if bit
 * 2 of the flags is set. */
struct multiboot_info {
  uint32_t flags, memory_kib[2], boot_device, command_line;
};

/* Intel SDM vol. 3, 6.11: an interrupt gate. */
struct gate {
  uint16_t offset_low, selector, type, offset_high;
};

struct __attribute__((packed)) table_register {
  uint16_t limit;
  const void* base;
};

/* The boot loader's descriptor table may be gone, and an interrupt needs a valid one: flat code (selector 8)
 * and data (16). */
static const uint64_t descriptors[] = {0, 0x00cf9a000000ffff, 0x00cf92000000ffff};
static struct gate gates[33];

extern void timer_interrupt(void);
extern void wait_tick(void);

/*
 * The timer's interrupt only ever arrives at `hlt` in wait_tick: `sti` takes effect after the next
 * instruction, and the gate disables interrupts again. Its handler acknowledges it, drops the three words
 * that the CPU pushed and returns to wait_tick's caller. There is no `iret` because KVM without hardware
 * virtualisation interprets the guest, and its interpreter has no `iret` in protected mode.
 */
__asm__(
    ".text\n"
    ".align 4\n"
    ".long 0x1badb002, 0, -0x1badb002\n"
    ".globl _start, timer_interrupt, wait_tick\n"
    "_start:\n"
    "    cli\n"
    "    mov $0x90000, %esp\n"
    "    push %ebx\n"
    "    call run\n"
    "wait_tick:\n"
    "    sti\n"
    "1:  hlt\n"
    "    jmp 1b\n"
    "timer_interrupt:\n"
    "    mov $0x20, %al\n"
    "    out %al, $0x20\n"
    "    add $12, %esp\n"
    "    ret\n");

static void out(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }

static uint8_t in(uint16_t port) {
  uint8_t value;
  __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
  return value;
}

static void send(char letter) {
  while (!(in(0x3f8 + 5) & 0x20)) {
  }
  out(0x3f8, (uint8_t)letter);
}

static void load_tables(void) {
  uint32_t handler = (uint32_t)timer_interrupt;
  gates[32] = (struct gate){(uint16_t)handler, 8, 0x8e00, (uint16_t)(handler >> 16)};
  struct table_register gdt = {sizeof descriptors - 1, descriptors};
  struct table_register idt = {sizeof gates - 1, gates};
  __asm__ volatile(
      "lgdt %0\n"
      "lidt %1\n"
      "ljmp $8, $1f\n"
      "1: mov $16, %%ax\n"
      "mov %%ax, %%ds\n"
      "mov %%ax, %%es\n"
      "mov %%ax, %%ss\n"
      :
      : "m"(gdt), "m"(idt)
      : "eax", "memory");
}

/* Intel SDM vol. 3, 11.4.7: software-enable the local APIC and let the 8259s through at LINT0. SeaBIOS does
 * it too, qboot.rom doesn't. */
static void open_local_apic(void) {
  *(volatile uint32_t*)0xfee000f0 = 0x1ff;
  *(volatile uint32_t*)0xfee00350 = 0x700;
}

/* The two 8259s with vectors from 32 and from 40 on, everything masked but the timer; then the 8254's channel
 * 0 as a rate generator. */
static void start_timer(void) {
  static const uint8_t first[] = {0x11, 32, 4, 1, 0xfe}, second[] = {0x11, 40, 2, 1, 0xff};
  for (int i = 0; i < 5; i++) {
    out(i ? 0x21 : 0x20, first[i]);
    out(i ? 0xa1 : 0xa0, second[i]);
  }
  uint16_t divisor = 1193182 / TICK_HZ;
  out(0x43, 0x34);
  out(0x40, (uint8_t)divisor);
  out(0x40, (uint8_t)(divisor >> 8));
}

/* The number after `name` in the command line, else `fallback`. */
static uint32_t parameter(const struct multiboot_info* info, const char* name, uint32_t fallback) {
  if (!(info->flags & 4)) return fallback;
  for (const char* at = (const char*)info->command_line; *at; at++) {
    const char *left = at, *right = name;
    while (*right && *left == *right) left++, right++;
    if (*right) continue;
    uint32_t number = 0;
    while (*left >= '0' && *left <= '9') number = number * 10 + (uint32_t)(*left++ - '0');
    return number;
  }
  return fallback;
}

static void fail(void) {
  send('!');
  for (;;) __asm__ volatile("cli; hlt");
}

void run(const struct multiboot_info* info) {
  uint32_t pages = parameter(info, "pages=", 256), span_mib = parameter(info, "span=", 8);
  if (!pages || span_mib > SPAN_MIB_MAX || pages > span_mib * 256) fail();
  uint32_t stride = span_mib * 256 / pages * 4096;
  load_tables();
  open_local_apic();
  start_timer();
  for (uint32_t round = 1;; round++) {
    for (uint32_t i = 0; i < pages; i++) {
      /* A word that moves through the page, and a value that differs from page to page. */
      volatile uint32_t* page = (volatile uint32_t*)(FIRST_PAGE + i * stride);
      if (round > 1 && page[(round - 1) % 1024] != ((round - 1) ^ i << 20)) fail();
      page[round % 1024] = round ^ i << 20;
    }
    if (round % LETTER_ROUNDS == 0) send((char)('A' + (round / LETTER_ROUNDS - 1) % 16));
    wait_tick();
  }
}
