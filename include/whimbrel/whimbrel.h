/* Sessions: memory larger than RAM for a program that uses whimbrel knowingly. C11 and C++; C++ programs may prefer
 * <whimbrel/whimbrel.hpp>. The kernel-shaped interface for authors of device drivers is <whimbrel/hmm.h>.
 *
 *   struct whimbrel_session_options options = {.struct_size = sizeof options, .ram_bytes = 1 << 30, .device = "zstd"};
 *   whimbrel_session *session;
 *   void *memory;
 *   if (whimbrel_session_open(&options, &session) < 0) { puts(whimbrel_error()); exit(1); }
 *   if (whimbrel_allocate(session, 8L << 30, &memory) < 0) ...
 *   ... use it like any memory: cold pages leave, touched ones come home ...
 *   whimbrel_free(session, memory);
 *   whimbrel_session_close(session);
 *
 * A session is a budget, a device, and memory that is named to it: allocated by it, or adopted. Nothing else of the process
 * is moved. Several sessions may be open at a time, each with a budget and a device of its own. The process needs nothing
 * but this library. In a program started by `whimbrel run`, whose budget covers all of its memory already, opening a session
 * fails with EBUSY.
 *
 * Units: bytes for addresses, lengths and budgets; counts are pages of 4096 bytes. Errors: negative errno;
 * whimbrel_error() says in words what failed and what to do next. ESRCH from any call: the session's engine has ended (a
 * forked child that may not use userfaultfd: its memory has come home and is ordinary memory there).
 * Thread-safety: every function may be called on any thread at any time, except that whimbrel_session_close() must be the
 * last call with its session. Not from signal handlers.
 *
 * Where userfaultfd is not to be had (containers' filters, kernels before 6.8), a session still works, on guarded arenas: memory
 * without access rights, whose touches arrive as SIGSEGV. Only memory of whimbrel_allocate() is managed then. What is lost:
 *   - a system call that is given memory that is away fails with EFAULT (the same with "userfaultfd, user mode only"): prefetch
 *     or pin it before; what hardware or the kernel writes to by itself (O_DIRECT, io_uring) must be pinned
 *   - whimbrel_adopt() fails with EOPNOTSUPP
 *   - a forked child inherits nothing of the session: a touch of its memory ends the child with a message, calls give ESRCH
 *   - a thread that has SIGSEGV blocked is ended by its first touch of what is away; a handler for SIGSEGV must be installed
 *     before the first session is opened, or call the one it has replaced
 *   - mprotect(), munmap(), mremap(), mlock() and madvise() are not for that memory
 * The environment variable WHIMBREL_RUNG chooses: "guarded" always, "userfaultfd" an error (EPERM) rather than any of this.
 *
 * fork(): the child has all contents, brings them home by an engine of its own, and its copy of the session works on with
 * the same budget. Requests under way stay with the parent: waiting for one in the child gives ESRCH. Only fork() is seen; a
 * raw clone() that copies the address space gives the child zeros for what is away. vfork(), posix_spawn() and exec are fine.
 */
#ifndef WHIMBREL_WHIMBREL_H
#define WHIMBREL_WHIMBREL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define WHIMBREL_API __attribute__((visibility("default")))

/* What the last call of this thread that failed had to say. Never null; valid until the thread's next call. */
const char *whimbrel_error(void) WHIMBREL_API;
/* Version of the library that is loaded: major << 16 | minor << 8 | patch. */
unsigned int whimbrel_version(void) WHIMBREL_API;

/* ---- sessions --------------------------------------------------------------------------------------------------------- */

typedef struct whimbrel_session whimbrel_session;

struct whimbrel_session_options {
  size_t struct_size;   /* sizeof of the caller's: what a newer library adds counts as 0 */
  uint64_t ram_bytes;   /* most memory of the session that is resident and uncompressed; 0: no limit of this kind */
  uint64_t total_bytes; /* most RAM in all: resident, compressed store and whimbrel's own; 0: no limit of this kind */
  const char *device;   /* where pages go, as `whimbrel run --device` takes it: "zstd", "lz4", "ram", "file:PATH,...",
                            "nbd:URI"; null: zstd */
  uint32_t flags;       /* 0 */
};

/* At least one limit, of at least 2 MiB. EINVAL: options or device specification. EBUSY: the program runs under `whimbrel
 * run`. EPERM, ENOSYS, EOPNOTSUPP: memory can be managed in no way, or not in the one that WHIMBREL_RUNG asks for (`whimbrel
 * doctor` says what to change). ENOMEM, EMFILE (16 sessions). */
int whimbrel_session_open(const struct whimbrel_session_options *options, whimbrel_session **session) WHIMBREL_API;
/* Releases adopted memory and ends the session. EBUSY: memory is still allocated; EIO: adopted memory could not be loaded.
 * Nothing is lost in either case, and the session goes on. Null is allowed. */
int whimbrel_session_close(whimbrel_session *session) WHIMBREL_API;
/* Another budget, now: what is too much leaves in the background. EINVAL. */
int whimbrel_session_set_budget(whimbrel_session *session, uint64_t ram_bytes, uint64_t total_bytes) WHIMBREL_API;
/* Another device, as whimbrel_session_options.device names it. What leaves from now on goes there; what is away moves there in the
 * background while the program goes on (leaving_pages of the statistics: 0 when all has), and then the one before is closed. To
 * add a tier or a copy, or to take one away, name what is to be in the end. EINVAL: the specification, or null. ENODEV: nothing
 * answers there. EIO: the device cannot be had, or those of three changes before are not empty yet. The session keeps its device
 * then, and nothing is lost. */
int whimbrel_session_set_device(whimbrel_session *session, const char *device) WHIMBREL_API;

struct whimbrel_session_stats {
  size_t struct_size;           /* in: sizeof of the caller's */
  uint64_t ram_limit_bytes;     /* as set; 0: none */
  uint64_t total_limit_bytes;
  uint64_t allocated_bytes;     /* by whimbrel_allocate(), and not freed */
  uint64_t adopted_bytes;
  uint64_t resident_pages;      /* in RAM, uncompressed, as counted */
  uint64_t resident_limit_pages; /* what that may be at this moment; 0: no limit */
  uint64_t peak_resident_pages;
  uint64_t stored_pages;        /* on the device */
  uint64_t compressed_bytes;    /* what they are there, */
  uint64_t held_bytes;          /* and what that takes with all overhead */
  uint64_t total_bytes;         /* resident, store and whimbrel's own */
  uint64_t pages_out;           /* since the start: left for the device, */
  uint64_t pages_home;          /* came home */
  uint64_t faults;              /* touches of memory that was away */
  uint64_t fresh_faults;        /* first touches of memory */
  uint64_t wait_ns;             /* time spent serving both */
  uint64_t over_limit;          /* faults served although no room could be made */
  uint64_t refused_pages;       /* would not move: pinned by a device, shared after a fork */
  uint64_t device_errors;       /* failed stores: pages stayed in RAM */
  uint64_t load_errors;         /* failed loads: the access got SIGBUS */
  uint64_t leaving_pages;       /* still on devices before this one (whimbrel_session_set_device) */
};
/* Fills what *stats has room for. EINVAL: struct_size. */
int whimbrel_session_get_stats(whimbrel_session *session, struct whimbrel_session_stats *stats) WHIMBREL_API;
/* The last thing the engine had to tell a person (device full, budget too small ...). Returns how many there have been so
 * far; 0: none, and an empty text. EINVAL. */
int whimbrel_session_notice(whimbrel_session *session, char *text, size_t room) WHIMBREL_API;

/* By which means the memory of the session is managed, for people and logs: "userfaultfd", "/dev/userfaultfd", "userfaultfd,
 * user mode only" or "guarded arenas" (see above). Static text; null: no session. */
const char *whimbrel_session_rung(whimbrel_session *session) WHIMBREL_API;

/* ---- memory ----------------------------------------------------------------------------------------------------------- */

/* Zeroed memory in whole pages; 2 MiB and more are aligned to 2 MiB. Addresses are limited by RLIMIT_AS, not by RAM: what is
 * never touched costs nothing. For many small objects put a pool on top. EINVAL: 0 bytes. ENOMEM. */
int whimbrel_allocate(whimbrel_session *session, size_t bytes, void **memory) WHIMBREL_API;
/* Null is allowed. Not memory of this session, or not the start of a piece: stops the process, as free() would. */
void whimbrel_free(whimbrel_session *session, void *memory) WHIMBREL_API;
/* Bytes of the piece that starts there, a multiple of the page size; 0: no piece of this session. */
size_t whimbrel_allocated_size(whimbrel_session *session, const void *memory) WHIMBREL_API;

/* Takes memory of the program under the session's management: the whole pages within [memory, memory + bytes), which must be
 * private anonymous writable memory, not locked, not part of an adopted range. Release it before it is unmapped or freed.
 * Not for stacks, or for what libc or fork handlers use by themselves.
 * EINVAL: no whole page in it, or overlapping. EOPNOTSUPP: of a kind that cannot be moved, or the session has guarded arenas. EBUSY: another userfaultfd has it.
 * ENOMEM: too many ranges. */
int whimbrel_adopt(whimbrel_session *session, void *memory, size_t bytes) WHIMBREL_API;
/* The opposite, with the same arguments: everything of it comes home, whatever the budget. ENOENT; EIO. */
int whimbrel_release(whimbrel_session *session, void *memory, size_t bytes) WHIMBREL_API;

/* ---- hints -------------------------------------------------------------------------------------------------------------
 * About a range within one allocated piece or one adopted range: all pages it touches (discard: all that lie within). EINVAL:
 * empty, or not memory of this session. Nothing here promises that a page moves: the outcome says what happened. */

/* Why pages were refused: a set of these. */
#define WHIMBREL_REFUSED_PINNED (1u << 0)        /* by whimbrel_pin(), or because a fork needs them */
#define WHIMBREL_REFUSED_BUSY (1u << 1)          /* the kernel would not give them: shared after a fork, used by hardware */
#define WHIMBREL_REFUSED_DEVICE_FULL (1u << 2)   /* no place on the device */
#define WHIMBREL_REFUSED_OVER_BUDGET (1u << 3)   /* no room under the budget */
#define WHIMBREL_REFUSED_NOT_MANAGED (1u << 4)   /* locked, or protected against writing */
#define WHIMBREL_REFUSED_DEVICE_FAILED (1u << 5) /* contents could not be loaded */

/* asked = moved + already + empty + refused, as each page was when it was its turn. */
struct whimbrel_outcome {
  uint64_t asked;
  uint64_t moved;
  uint64_t already;  /* were where they were wanted */
  uint64_t empty;    /* nothing has been written there: nothing to move */
  uint64_t refused;
  uint32_t reasons;  /* of the refused ones */
  uint32_t reserved;
};

/* To the device, now. Outcomes may be null everywhere. */
int whimbrel_migrate(whimbrel_session *session, const void *start, size_t bytes, struct whimbrel_outcome *outcome) WHIMBREL_API;
/* Home, as far as the budget lets it: others leave for them, but no more than fits under it. */
int whimbrel_prefetch(whimbrel_session *session, const void *start, size_t bytes, struct whimbrel_outcome *outcome) WHIMBREL_API;
/* Home, and kept there until the matching whimbrel_unpin(). All or nothing: ENOMEM when the pages that are pinned in all
 * would leave no room under the budget, EIO when one cannot be loaded. Pins nest; they are undone range by range. */
int whimbrel_pin(whimbrel_session *session, const void *start, size_t bytes, struct whimbrel_outcome *outcome) WHIMBREL_API;
/* ENOENT: no such pin. */
int whimbrel_unpin(whimbrel_session *session, const void *start, size_t bytes) WHIMBREL_API;
/* The contents are of no use any more: the range reads as zeros and takes nothing. */
int whimbrel_discard(whimbrel_session *session, void *start, size_t bytes) WHIMBREL_API;

enum whimbrel_advice {
  WHIMBREL_NORMAL = 0,      /* takes back sequential and random */
  WHIMBREL_SEQUENTIAL = 1,  /* a touch brings a full window home at once */
  WHIMBREL_RANDOM = 2,      /* a touch brings its page and no neighbours */
  WHIMBREL_COLD = 3,        /* first to leave when room is needed */
  WHIMBREL_READ_MOSTLY = 4  /* EOPNOTSUPP: no device keeps a copy of what is home */
};
/* EOPNOTSUPP: this kind cannot be honoured. ENOMEM: too many advised ranges. */
int whimbrel_advise(whimbrel_session *session, const void *start, size_t bytes, enum whimbrel_advice advice) WHIMBREL_API;
/* 0 when `device` is the name of the session's device ("zstd", "file" ...): its pages go nowhere else. EOPNOTSUPP for any
 * other: open a session with that device. */
int whimbrel_prefer_device(whimbrel_session *session, const void *start, size_t bytes, const char *device) WHIMBREL_API;

/* ---- requests: the same, without waiting ------------------------------------------------------------------------------- */

/* A whimbrel_prefetch(), whimbrel_migrate() under way. */
typedef struct whimbrel_request {
  whimbrel_session *session;
  uint64_t ticket;
  uint64_t pages;
} whimbrel_request;

/* Fill *request, to be given to whimbrel_wait() or whimbrel_forget() exactly once each. At most 64 requests of a session are
 * under way or not waited for; a further one waits for one of them. */
int whimbrel_prefetch_start(whimbrel_session *session, const void *start, size_t bytes, whimbrel_request *request) WHIMBREL_API;
int whimbrel_migrate_start(whimbrel_session *session, const void *start, size_t bytes, whimbrel_request *request) WHIMBREL_API;
/* 1: done, 0: under way. */
int whimbrel_is_done(const whimbrel_request *request) WHIMBREL_API;
/* Waits for at most `milliseconds`; negative: as long as it takes. EAGAIN: still under way, and the request stays valid.
 * ESRCH: waited for already, or made before a fork. */
int whimbrel_wait(const whimbrel_request *request, int milliseconds, struct whimbrel_outcome *outcome) WHIMBREL_API;
/* The outcome is of no interest; the work is done all the same. */
void whimbrel_forget(const whimbrel_request *request) WHIMBREL_API;

/* ---- where pages are ---------------------------------------------------------------------------------------------------- */

enum whimbrel_where {
  WHIMBREL_EMPTY = 0,    /* nothing has been written there */
  WHIMBREL_RESIDENT = 1, /* in RAM */
  WHIMBREL_AWAY = 2,     /* on the device */
  WHIMBREL_MOVING = 3    /* on its way */
};
#define WHIMBREL_CAN_READ 1u
#define WHIMBREL_CAN_WRITE 2u
#define WHIMBREL_IS_PINNED 1u

struct whimbrel_page {
  uint8_t where;  /* enum whimbrel_where */
  uint8_t order;  /* 9: part of a huge page of 2 MiB; 0: a page of 4 KiB */
  uint8_t rights; /* WHIMBREL_CAN_... */
  uint8_t flags;  /* WHIMBREL_IS_... */
};
/* One entry for each page that the range touches, as it is at this moment; brings nothing home. Returns how many there are;
 * only `room` of them are written. */
long whimbrel_residency(whimbrel_session *session, const void *start, size_t bytes, struct whimbrel_page *pages, size_t room)
    WHIMBREL_API;

#ifdef __cplusplus
}
#endif
#endif
