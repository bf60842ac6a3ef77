// The mirror devices as a client sees them.
#ifndef TESTS_MIRROR_DEVICE_H
#define TESTS_MIRROR_DEVICE_H

#include <stddef.h>
#include <stdint.h>

#include "dmirror_abi.h"
#include "harness.h"

// Nodes are PREFIX0 .. PREFIX3. Set once at start.
extern const char* node_prefix;

// Path of a node, in a static buffer.
const char* node_path(unsigned minor);

// A descriptor; a node that cannot be opened ends the case.
int open_node(unsigned minor);

// What a command came to.
struct reply {
  int error;  // 0 or an errno
  uint64_t cpages;
  uint64_t faults;
};

struct reply command(int node, enum dmirror_nr nr, const void* addr, void* ptr, uint64_t npages);

static inline struct reply device_read(int node, const void* at, size_t pages, void* to) {
  return command(node, DMIRROR_READ, at, to, pages);
}
static inline struct reply device_write(int node, const void* at, size_t pages, void* from) {
  return command(node, DMIRROR_WRITE, at, from, pages);
}
static inline struct reply to_system(int node, const void* at, size_t pages) {
  return command(node, DMIRROR_MIGRATE_TO_SYS, at, NULL, pages);
}
static inline struct reply check_exclusive(int node, const void* at, size_t pages) {
  return command(node, DMIRROR_CHECK_EXCLUSIVE, at, NULL, pages);
}
static inline struct reply set_flags(int node, uint64_t flags) {
  return command(node, DMIRROR_FLAGS, NULL, NULL, flags);
}

// The commands with a buffer of their own that is thrown away.
struct reply to_device(int node, const void* at, size_t pages);
struct reply read_and_drop(int node, const void* at, size_t pages);
struct reply make_exclusive(int node, const void* at, size_t pages);

// RELEASE. Afterwards the node is made to hold base pages again (use_base_pages).
struct reply release_node(int node);

// A node that gave all its memory back takes new memory in the shape of the first request, and a coherent node has to
// live with that: so the first request is made here, for one base page. The flags of the open are cleared.
void use_base_pages(int node);

// Writes the pattern of `value` through the device.
struct reply stamp_by_device(int node, const void* at, size_t pages, unsigned value);

// Base pages that one 2 MiB unit counts as when it comes home: 1 when it went whole.
size_t unit_count(const struct kind* kind);

// --- Expectations -------------------------------------------------------------------------------------------------
// Contents are named as in page_pattern.h, folded: "v1*8 0*4".

#define EXPECT_READ(node, at, pages, contents) \
  expect_transfer(__FILE__, __LINE__, DMIRROR_READ, (node), (at), (pages), (contents))
#define EXPECT_TO_DEVICE(node, at, pages, contents) \
  expect_transfer(__FILE__, __LINE__, DMIRROR_MIGRATE_TO_DEV, (node), (at), (pages), (contents))
#define EXPECT_EXCLUSIVE(node, at, pages, contents) \
  expect_transfer(__FILE__, __LINE__, DMIRROR_EXCLUSIVE, (node), (at), (pages), (contents))
// The command succeeds, says cpages = pages, and returns these contents. Gives the number of fault rounds, which only
// READ may have.
uint64_t expect_transfer(const char* file, int line, enum dmirror_nr nr, int node, const void* at, size_t pages,
                         const char* contents);

#define EXPECT_WRITE(node, at, pages, value) expect_device_write(__FILE__, __LINE__, (node), (at), (pages), (value))
uint64_t expect_device_write(const char* file, int line, int node, const void* at, size_t pages, unsigned value);

#define EXPECT_TO_SYSTEM(node, at, pages, cpages) expect_to_system(__FILE__, __LINE__, (node), (at), (pages), (cpages))
void expect_to_system(const char* file, int line, int node, const void* at, size_t pages, uint64_t cpages);

// What a snapshot says, in words:
//   none     nothing there, or of another node, or exclusive      fault    no access possible
//   zero     the shared zero page                                 zero-RAM the huge zero page
//   ram      a RAM page, writable        ram-ro   read-only       RAM, RAM-ro  of a 2 MiB mapping
//   dev      a page of this node         dev-ro   read-only       DEV, DEV-ro  of a 2 MiB mapping (private nodes
//                                                                              only; coherent ones: as dev, dev-ro)
//   home     a RAM page that a 2 MiB unit of the device became when it came home whole: RAM on private nodes, ram on
//            coherent ones
//   other, other-ro   a coherent page of another node
#define EXPECT_SNAPSHOT(kind, node, at, pages, words) \
  expect_snapshot(__FILE__, __LINE__, (kind), (node), (at), (pages), (words))
void expect_snapshot(const char* file, int line, const struct kind* kind, int node, const void* at, size_t pages,
                     const char* words);

#endif
