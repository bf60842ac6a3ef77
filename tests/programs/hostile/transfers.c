// The kernel holds on to pages: fixed buffers of io_uring, transfers past the page cache, pages that lie in pipes and
// sockets while their memory is about to leave.

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/errqueue.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "hostile.h"

#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif
#ifndef MSG_ZEROCOPY
#define MSG_ZEROCOPY 0x4000000
#endif

// A file on a disk, where O_DIRECT may be refused; nameless once it is open.
static int scratch_file(int flags) {
  char path[] = "/var/tmp/whimbrel-hostile-XXXXXX";
  int made = mkstemp(path);
  REQUIRE(made >= 0);
  int fd = open(path, O_RDWR | flags);
  unlink(path);
  close(made);
  return fd;
}

// --- io_uring, one request at a time ---

struct ring {
  int fd;
  unsigned *tail, *mask, *array, *head, *done_tail, *done_mask;
  struct io_uring_sqe* requests;
  struct io_uring_cqe* results;
};

static bool open_ring(struct ring* ring) {
  struct io_uring_params parameters;
  memset(&parameters, 0, sizeof parameters);
  ring->fd = (int)syscall(SYS_io_uring_setup, 4, &parameters);
  if (ring->fd < 0) return false;
  size_t bytes = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
  char* shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQ_RING);
  ring->requests = mmap(NULL, parameters.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_POPULATE, ring->fd, IORING_OFF_SQES);
  REQUIRE(shared != MAP_FAILED && ring->requests != MAP_FAILED);
  ring->tail = (unsigned*)(shared + parameters.sq_off.tail);
  ring->mask = (unsigned*)(shared + parameters.sq_off.ring_mask);
  ring->array = (unsigned*)(shared + parameters.sq_off.array);
  ring->head = (unsigned*)(shared + parameters.cq_off.head);
  ring->done_tail = (unsigned*)(shared + parameters.cq_off.tail);
  ring->done_mask = (unsigned*)(shared + parameters.cq_off.ring_mask);
  ring->results = (struct io_uring_cqe*)(shared + parameters.cq_off.cqes);
  return true;
}

static int transfer(struct ring* ring, int operation, int fd, char* buffer, unsigned bytes, uint64_t offset, int index) {
  unsigned tail = *ring->tail, slot = tail & *ring->mask;
  struct io_uring_sqe* request = &ring->requests[slot];
  memset(request, 0, sizeof *request);
  request->opcode = (uint8_t)operation;
  request->fd = fd;
  request->addr = (uint64_t)buffer;
  request->len = bytes;
  request->off = offset;
  request->buf_index = (uint16_t)index;
  ring->array[slot] = slot;
  __atomic_store_n(ring->tail, tail + 1, __ATOMIC_RELEASE);
  long entered;
  do {
    entered = syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
  } while (entered < 0 && errno == EINTR);
  REQUIRE(entered >= 0);
  REQUIRE(__atomic_load_n(ring->done_tail, __ATOMIC_ACQUIRE) != *ring->head);
  int result = ring->results[*ring->head & *ring->done_mask].res;
  __atomic_store_n(ring->head, *ring->head + 1, __ATOMIC_RELEASE);
  return result;
}

int case_io_uring(int argc, char** argv) {
  (void)argc, (void)argv;
  enum { kBuffer = 256 * 1024, kBuffers = 8 };
  struct ring ring;
  if (!open_ring(&ring)) {
    printf("io-uring: not permitted here: %s\n", strerror(errno));
    return kSkip;
  }
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 160);
  press(WORKING_SET);  // the buffers are away when they are registered
  struct iovec buffers[kBuffers];
  for (size_t i = 0; i < kBuffers; ++i) buffers[i] = (struct iovec){memory + i * 8 * MIB, kBuffer};
  REQUIRE(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, buffers, kBuffers) == 0);
  int fd = scratch_file(0);
  for (int round = 0; round < 3; ++round) {
    press(WORKING_SET);
    for (int i = 0; i < kBuffers; ++i) {
      REQUIRE(transfer(&ring, IORING_OP_WRITE_FIXED, fd, buffers[i].iov_base, kBuffer, (uint64_t)i * kBuffer, i) == kBuffer);
    }
    // Each buffer gets what its neighbour wrote: the kernel writes to pages that it has held all along.
    for (int i = 0; i < kBuffers; ++i) {
      uint64_t from = (uint64_t)((i + 1) % kBuffers) * kBuffer;
      REQUIRE(transfer(&ring, IORING_OP_READ_FIXED, fd, buffers[i].iov_base, kBuffer, from, i) == kBuffer);
    }
    press(WORKING_SET);
    for (size_t i = 0; i < kBuffers; ++i) {
      size_t source = ((i + 1 + (size_t)round) % kBuffers) * 8 * MIB;
      const uint64_t* words = buffers[i].iov_base;
      for (size_t k = 0; k < kBuffer / 8; ++k) REQUIRE(words[k] == pattern(160, source / 8 + k));
    }
  }
  // What is not registered goes through memory that may be away at any time.
  char* plain = memory + 4 * MIB;
  press(WORKING_SET);
  REQUIRE(transfer(&ring, IORING_OP_WRITE, fd, plain, kBuffer, 0, 0) == kBuffer);
  memset(plain, 0, kBuffer);
  press(WORKING_SET);
  REQUIRE(transfer(&ring, IORING_OP_READ, fd, plain, kBuffer, 0, 0) == kBuffer);
  for (size_t k = 0; k < kBuffer / 8; ++k) REQUIRE(((uint64_t*)plain)[k] == pattern(160, 4 * MIB / 8 + k));
  printf("io-uring: fixed and plain buffers hold what was transferred\n");
  return 0;
}

int case_direct_io(int argc, char** argv) {
  (void)argc, (void)argv;
  enum { kPiece = 1 << 20 };
  int fd = scratch_file(O_DIRECT);
  if (fd < 0) {
    printf("direct-io: /var/tmp does not take O_DIRECT: %s\n", strerror(errno));
    return kSkip;
  }
  char* from = map_memory(WORKING_SET / 2);
  char* to = map_memory(WORKING_SET / 2);
  fill(from, WORKING_SET / 2, 161);
  fill(to, WORKING_SET / 2, 162);
  press(WORKING_SET);
  for (size_t at = 0; at < WORKING_SET / 2; at += kPiece) {
    REQUIRE(pwrite(fd, from + at, kPiece, (off_t)at) == kPiece);
    if (at % (8 * kPiece) == 0) press(8 * MIB);
  }
  press(WORKING_SET);
  for (size_t at = 0; at < WORKING_SET / 2; at += kPiece) {
    REQUIRE(pread(fd, to + at, kPiece, (off_t)at) == kPiece);
    if (at % (8 * kPiece) == 0) press(8 * MIB);
  }
  verify(to, WORKING_SET / 2, 161, "read past the page cache");
  verify(from, WORKING_SET / 2, 161, "written past the page cache");
  printf("direct-io: memory and file are right\n");
  return 0;
}

// --- pages in pipes and sockets ---

int case_vmsplice(int argc, char** argv) {
  (void)argc, (void)argv;
  enum { kPiece = 64 * 1024 };
  char* memory = map_memory(WORKING_SET);
  char* back = map_memory(kPiece);
  fill(memory, WORKING_SET, 163);
  int ends[2];
  REQUIRE(pipe(ends) == 0 && fcntl(ends[1], F_SETPIPE_SZ, 4 * kPiece) > 0);
  for (size_t at = 0; at + kPiece <= WORKING_SET; at += 4 * MIB) {
    struct iovec piece = {memory + at, kPiece};
    REQUIRE(vmsplice(ends[1], &piece, 1, 0) == kPiece);
    press(WORKING_SET);  // the page leaves while the pipe holds it
    for (size_t got = 0; got < kPiece;) {
      ssize_t n = read(ends[0], back + got, kPiece - got);
      REQUIRE(n > 0);
      got += (size_t)n;
    }
    for (size_t k = 0; k < kPiece / 8; ++k) REQUIRE(((uint64_t*)back)[k] == pattern(163, at / 8 + k));
  }
  verify(memory, WORKING_SET, 163, "pages that lay in a pipe");
  printf("vmsplice: the pipe and the memory hold the same\n");
  return 0;
}

struct reader {
  int fd;
  size_t bytes;
  uint64_t seed;
  ptrdiff_t wrong;
};

static void* read_stream(void* argument) {
  struct reader* reader = argument;
  char buffer[65536];
  reader->wrong = -1;
  size_t at = 0, left = 0;
  while (at < reader->bytes) {
    ssize_t n = read(reader->fd, buffer + left, sizeof buffer - left);
    if (n <= 0) break;
    left += (size_t)n;
    size_t words = left / 8;
    for (size_t k = 0; k < words; ++k) {
      uint64_t word;
      memcpy(&word, buffer + 8 * k, 8);
      if (word != pattern(reader->seed, at / 8 + k) && reader->wrong < 0) reader->wrong = (ptrdiff_t)(at / 8 + k);
    }
    at += 8 * words;
    memmove(buffer, buffer + 8 * words, left - 8 * words);
    left -= 8 * words;
    if (at % (4 * MIB) < 65536) usleep(20000);  // let the sender run ahead: its pages wait in the socket
  }
  if (at < reader->bytes && reader->wrong < 0) reader->wrong = (ptrdiff_t)(at / 8);
  return NULL;
}

int case_zerocopy(int argc, char** argv) {
  (void)argc, (void)argv;
  int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t size = sizeof address;
  REQUIRE(bind(listener, (struct sockaddr*)&address, sizeof address) == 0 && listen(listener, 1) == 0);
  REQUIRE(getsockname(listener, (struct sockaddr*)&address, &size) == 0);
  int sender = socket(AF_INET, SOCK_STREAM, 0);
  if (setsockopt(sender, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) != 0) {
    printf("zerocopy: the kernel has no MSG_ZEROCOPY: %s\n", strerror(errno));
    return kSkip;
  }
  REQUIRE(connect(sender, (struct sockaddr*)&address, sizeof address) == 0);
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 164);
  struct reader reader = {accept(listener, NULL, NULL), WORKING_SET, 164, -1};
  REQUIRE(reader.fd >= 0);
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, read_stream, &reader) == 0);
  for (size_t at = 0; at < WORKING_SET;) {
    ssize_t n = send(sender, memory + at, WORKING_SET - at < 65536 ? WORKING_SET - at : 65536, MSG_ZEROCOPY);
    if (n < 0 && errno == ENOBUFS) {  // too many notices waiting: take them
      char control[256];
      struct msghdr message = {.msg_control = control, .msg_controllen = sizeof control};
      (void)recvmsg(sender, &message, MSG_ERRQUEUE | MSG_DONTWAIT);
      continue;
    }
    REQUIRE(n > 0);
    if (at / (16 * MIB) != (at + (size_t)n) / (16 * MIB)) press(WORKING_SET / 2);
    at += (size_t)n;
  }
  pthread_join(thread, NULL);
  if (reader.wrong >= 0) fail("word %td came out of the socket wrong", reader.wrong);
  verify(memory, WORKING_SET, 164, "pages that lay in a socket");
  printf("zerocopy: the socket and the memory hold the same\n");
  return 0;
}
