/*
 * Tells which tap devices of this network namespace frames of the guest come from, in the order in which they
 * came: one line "TAP FIRST_US LAST_US FRAMES" for frames in a row from one device, at the latest FLUSH_MS
 * after the first of them. Times are of CLOCK_MONOTONIC, as the frames are read. What is sent to a device
 * isn't counted, only what the QEMU behind it sends. Usage: sniffer MAC
 */
#include <arpa/inet.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define FLUSH_MS 100
#define QUEUE_BYTES (8 << 20)

struct run {
  int device;
  uint64_t first_us, last_us;
  unsigned frames;
};

static void die(const char* what) {
  perror(what);
  exit(1);
}

static uint64_t now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

static void flush(struct run* run) {
  char name[IF_NAMESIZE];
  if (run->frames && if_indextoname((unsigned)run->device, name)) {
    printf("%s %llu %llu %u\n", name, (unsigned long long)run->first_us, (unsigned long long)run->last_us,
           run->frames);
    fflush(stdout);
  }
  run->frames = 0;
}

static int is_tap(int device) {
  char name[IF_NAMESIZE];
  return if_indextoname((unsigned)device, name) && !strncmp(name, "tap", 3);
}

static void count(struct run* run, int device) {
  uint64_t now = now_us();
  if (run->frames && (run->device != device || now - run->first_us >= FLUSH_MS * 1000)) flush(run);
  if (!run->frames) *run = (struct run){.device = device, .first_us = now};
  run->last_us = now;
  run->frames++;
}

static int open_ears(void) {
  int fd = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)), bytes = QUEUE_BYTES;
  if (fd < 0) die("socket");
  if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof bytes)) die("SO_RCVBUFFORCE");
  return fd;
}

static void hear(int fd, const unsigned char* guest, struct run* run) {
  unsigned char header[ETH_HLEN];
  struct sockaddr_ll from;
  socklen_t length = sizeof from;
  ssize_t n = recvfrom(fd, header, sizeof header, 0, (struct sockaddr*)&from, &length);
  if (n < (ssize_t)sizeof header || from.sll_pkttype == PACKET_OUTGOING) return;
  if (!memcmp(header + ETH_ALEN, guest, ETH_ALEN) && is_tap(from.sll_ifindex)) count(run, from.sll_ifindex);
}

int main(int argc, char** argv) {
  unsigned char mac[ETH_ALEN];
  if (argc != 2 || sscanf(argv[1], "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", &mac[0], &mac[1], &mac[2], &mac[3],
                          &mac[4], &mac[5]) != ETH_ALEN)
    return 64;
  struct run run = {0};
  struct pollfd polled = {.fd = open_ears(), .events = POLLIN};
  puts("ready");
  fflush(stdout);
  for (;;) {
    int ready = poll(&polled, 1, run.frames ? FLUSH_MS : -1);
    if (ready < 0) die("poll");
    if (ready)
      hear(polled.fd, mac, &run);
    else
      flush(&run);
  }
}
