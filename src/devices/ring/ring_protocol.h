// What an engine and the device process say to each other: messages over a socket at the start, then requests through
// memory that both have mapped. Plain structures: they are the same in both programs, which need not be one build.
//
// Set-up, over a SOCK_SEQPACKET socket whose name begins with a zero byte (no file, no permissions; the token is what
// counts):
//   engine → RingHello      who it is (the token), what to open, the shape of the ring it would like
//   engine ← RingWelcome    what came of it; with it, when it is good, the memfd of the ring, its size sealed
// Then the socket says two things only: a byte from the engine is a bell (below), and its end means that the other
// one is gone. Each process has a connection of its own. A forked child gets one that was made for it before the fork;
// it inherits the right to read the volumes of its parent.
//
// A volume is where one process stores: it looks like an empty, endless file. What part of the export is behind which
// part of a volume is the device process's business. A connection has one volume to write to.
//
// The ring: a page with RingHeader, a page with RingLane for each lane, then for each lane `depth` slots of
// `slot_bytes`. A lane is used by one thread of the engine at a time. Who wants something
//   fills a slot (writes), fills requests[posted % depth], then sets posted to posted + 1;
//   when RingHeader::asleep is set (taking it back) sends the bell;
//   waits for `done` to move: looks for some microseconds, then sets `sleeps` and waits for the futex `done`.
// The device process
//   carries requests out in any order; reads leave their bytes in the slot;
//   fills completions[done % depth], sets done to done + 1, and wakes the futex when `sleeps` is set (taking it back);
//   sets `asleep` and looks once more before it waits for bells.
// No more than `depth` requests of a lane are between `posted` and their completion's being taken, so neither array is
// ever full. Counters wrap. Words that both sides use are aligned and only used as atomics.
//
// Neither side believes the other: every index, length and offset is checked by who reads it, on a copy.
#ifndef WHIMBREL_RING_PROTOCOL_H
#define WHIMBREL_RING_PROTOCOL_H

#include <stdint.h>

#define WHIMBREL_RING_MAGIC 0x316e7257u /* "Wrn1": changes with every change here */
#define WHIMBREL_RING_MOST_LANES 64
#define WHIMBREL_RING_MOST_DEPTH 64
#define WHIMBREL_RING_PAGE 4096

/* RingHello::purpose */
enum {
  kRingJoin = 1,
  kRingProbe = 2 /* open the target and say what came of it; no ring */
};

/* RingRequest::op. Errors are errno values; ENODATA: nothing is there (any more), ENOTCONN: the server has been gone for
   longer than the timeout, ETIMEDOUT: it may have been done or may be done later. */
enum {
  kRingNothing = 0, /* answered at once: what the way itself costs */
  kRingRead = 1,
  kRingWrite = 2,
  kRingTrim = 3,  /* the range holds nothing any more; EOPNOTSUPP where the server cannot */
  kRingUsers = 4, /* value: how many connections have the volume */
  kRingDrop = 5   /* this connection does not use the volume any more */
};

struct RingHello {
  uint32_t magic;
  uint32_t purpose;
  uint8_t token[16];
  uint64_t parent; /* RingWelcome::connection of the process that forks; 0: none */
  uint32_t lanes, depth, slot_bytes; /* slot_bytes: whole pages */
  uint32_t connections;              /* to the server, at most */
  uint32_t timeout_ms;               /* how long a request may take, reconnecting included */
  uint32_t force;                    /* 1: overwrite what the export holds */
  char kind[16];                     /* "nbd" */
  char target[1024];                 /* for nbd: the URI */
  char certificates[256];            /* for TLS: a directory; empty: the library's default */
};

struct RingWelcome {
  uint32_t magic;
  int32_t failed;      /* 0, or an errno; then `text` says why, in words that can follow "nbd: " */
  uint64_t connection; /* a random number */
  uint32_t volume;     /* that this connection may write to */
  uint32_t process;    /* of the device process */
  uint64_t size_bytes; /* that there is for all volumes */
  char text[400];
};

struct RingHeader {
  uint32_t magic;
  uint32_t lanes, depth, slot_bytes; /* for people who look; nobody relies on them */
  uint32_t unused[12];
  uint32_t asleep;
};

struct RingRequest {
  uint32_t slot;
  uint32_t op;
  uint32_t volume;
  uint32_t unused;
  uint64_t offset; /* whole pages */
  uint64_t bytes;  /* whole pages; for reads and writes no more than a slot */
};

struct RingCompletion {
  uint32_t slot;
  int32_t error;
  uint64_t value;
};

struct RingLane {
  uint32_t posted; /* the engine's */
  uint32_t unused_1[15];
  uint32_t done; /* the device process's; a futex */
  uint32_t unused_2[15];
  uint32_t sleeps;
  uint32_t unused_3[15];
  struct RingRequest requests[WHIMBREL_RING_MOST_DEPTH];
  struct RingCompletion completions[WHIMBREL_RING_MOST_DEPTH];
};

#ifdef __cplusplus
static_assert(sizeof(RingHeader) <= WHIMBREL_RING_PAGE && sizeof(RingLane) <= WHIMBREL_RING_PAGE);
static_assert(sizeof(RingRequest) == 32 && sizeof(RingCompletion) == 16);
#endif

#endif
