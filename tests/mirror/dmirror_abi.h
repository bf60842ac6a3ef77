// The interface of the mirror test device: nodes, command numbers, the command block, the bytes of a snapshot.
//
// Written from the documented binary interface; it needs no kernel header, and clients that include it run on the
// kernel's own device and on a preloaded stand-in alike.
#ifndef TESTS_MIRROR_DMIRROR_ABI_H
#define TESTS_MIRROR_DMIRROR_ABI_H

#include <stdint.h>

#define DMIRROR_DEFAULT_PREFIX "/dev/hmm_dmirror"

enum {
  DMIRROR_PAGE = 4096,       // bytes of a page; every length in the command block is in these
  DMIRROR_UNIT_PAGES = 512,  // pages of one 2 MiB unit
  DMIRROR_NODES = 4          // nodes 0 and 1 are device-private, 2 and 3 device-coherent (may be absent)
};

// The argument of every command. Written back only when the command succeeds.
struct dmirror_command {
  uint64_t addr;    // address to act on, in the address space of whoever opened the node
  uint64_t ptr;     // buffer of the caller
  uint64_t npages;  // length of the range in pages, at least 1
  uint64_t cpages;  // out: pages processed
  uint64_t faults;  // out: device fault rounds
};

#ifdef __cplusplus
static_assert(sizeof(dmirror_command) == 40, "the block is five 64-bit words");
#else
_Static_assert(sizeof(struct dmirror_command) == 40, "the block is five 64-bit words");
#endif

// The second argument of ioctl: read-write, type 'H', size 40.
#define DMIRROR_REQUEST(nr) (0xC0284800ul + (unsigned long)(nr))

enum dmirror_nr {
  DMIRROR_READ = 0,             // the device reads memory; ptr receives npages pages
  DMIRROR_WRITE = 1,            // the device writes memory; ptr holds npages pages
  DMIRROR_MIGRATE_TO_DEV = 2,   // pages go to the node; ptr receives what the device then sees
  DMIRROR_MIGRATE_TO_SYS = 3,   // pages of the node come home; ptr is not used
  DMIRROR_SNAPSHOT = 4,         // ptr receives one byte per page
  DMIRROR_EXCLUSIVE = 5,        // pages become device-exclusive; ptr receives their contents
  DMIRROR_CHECK_EXCLUSIVE = 6,  // EPERM while any page of the range is still exclusive
  DMIRROR_RELEASE = 7,          // the node gives all its memory back
  DMIRROR_FLAGS = 8             // flags of this open := npages
};

enum { DMIRROR_FLAG_FAIL_ALLOC = 1 };  // the next allocation of this open fails

// A snapshot byte is a base, an access bit and a size bit.
enum dmirror_snapshot_bits {
  DMIRROR_PROT_ERROR = 0xff,  // whole byte: no access possible
  DMIRROR_PROT_NONE = 0x00,   // whole byte: nothing there now; as a base: ordinary RAM
  DMIRROR_PROT_READ = 0x01,
  DMIRROR_PROT_WRITE = 0x02,
  DMIRROR_PROT_PMD = 0x04,
  DMIRROR_PROT_PUD = 0x08,
  DMIRROR_PROT_ZERO = 0x10,
  DMIRROR_PROT_DEV_PRIVATE_LOCAL = 0x20,
  DMIRROR_PROT_DEV_PRIVATE_REMOTE = 0x30,
  DMIRROR_PROT_DEV_COHERENT_LOCAL = 0x40,
  DMIRROR_PROT_DEV_COHERENT_REMOTE = 0x50
};

#endif
