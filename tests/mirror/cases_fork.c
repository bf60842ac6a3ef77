// fork and copy-on-write of pages on the device: what each process reads, which never depends on where a page is.
// Where the pages are after fork: cases_fork_places.c.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

MIRROR_CASE(fork, child_reads, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  struct partner other = start_child();
  if (other.in_child) {
    EXPECT_CONTENTS(at, 16, "v1*16");
    end_child();
  }
  await_child(&other);
  EXPECT_CONTENTS(at, 16, "v1*16");
}

MIRROR_CASE(fork, child_writes, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  struct partner other = start_child();
  if (other.in_child) {
    stamp(at, 4, 2);
    EXPECT_CONTENTS(at, 6, "v2*4 v1*2");
    pass_turn(&other);
    await_turn(&other);
    EXPECT_CONTENTS(at, 16, "v2*4 v1*12");
    end_child();
  }
  await_turn(&other);
  EXPECT_CONTENTS(at, 16, "v1*16");
  stamp(at + 8 * DMIRROR_PAGE, 8, 3);
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 16, "v1*8 v3*8");
}

MIRROR_CASE(fork, parent_writes, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 16, "v1*16");
    end_child();
  }
  stamp(at, 4, 2);
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 16, "v2*4 v1*12");
}

MIRROR_CASE(fork, both_write, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  struct partner other = start_child();
  if (other.in_child) {
    stamp(at, 2, 2);
    pass_turn(&other);
    await_turn(&other);
    EXPECT_CONTENTS(at, 8, "v2*2 v1*6");
    end_child();
  }
  await_turn(&other);
  stamp(at + DMIRROR_PAGE, 2, 3);
  EXPECT_CONTENTS(at, 8, "v1 v3*2 v1*5");
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v1 v3*2 v1*5");
}

MIRROR_CASE(fork, child_sees_what_the_device_wrote_before, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  EXPECT_WRITE(node, at, 8, 2);
  struct partner other = start_child();
  if (other.in_child) {
    EXPECT_CONTENTS(at, 16, "v2*8 v1*8");
    end_child();
  }
  await_child(&other);
  EXPECT_CONTENTS(at, 16, "v2*8 v1*8");
}

MIRROR_CASE(fork, child_does_not_see_what_the_device_writes_after, COHERENT) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 16, "v1*16");
    end_child();
  }
  EXPECT_WRITE(node, at, 8, 2);
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 16, "v2*8 v1*8");
}

// The same on private nodes: the kernel refuses to write a page that it may not, or the page is un-shared first.
MIRROR_CASE(fork, device_never_writes_what_the_child_shares, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 16, "v1*16");
    end_child();
  }
  const int error = stamp_by_device(node, at, 16, 2).error;
  EXPECT(error == 0 || error == EFAULT);
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 16, error ? "v1*16" : "v2*16");
}

MIRROR_CASE(fork, pages_shared_in_ram_go_out, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 4, "v1*4");
    stamp(at + 4 * DMIRROR_PAGE, 1, 2);
    pass_turn(&other);
    await_turn(&other);
    EXPECT_CONTENTS(at, 8, "v1*4 v2 v1*3");
    end_child();
  }
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev-ro*8");
  pass_turn(&other);
  await_turn(&other);
  EXPECT_CONTENTS(at, 8, "v1*8");
  stamp(at, 8, 3);
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v3*8");
}

MIRROR_CASE(fork, child_mirrors_itself, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  struct partner other = start_child();
  if (other.in_child) {
    const int own = open_node(kind->node);
    EXPECT_SNAPSHOT(kind, own, at, 8, "ram-ro*8");
    EXPECT_TO_DEVICE(own, at, 8, "v1*8");
    EXPECT_SNAPSHOT(kind, own, at, 8, "dev-ro*8");
    EXPECT_EQ(0, EXPECT_READ(own, at, 8, "v1*8"));
    pass_turn(&other);
    await_turn(&other);
    EXPECT_CONTENTS(at, 8, "v1*8");
    end_child();
  }
  await_turn(&other);
  stamp(at, 2, 2);
  EXPECT_CONTENTS(at, 8, "v2*2 v1*6");
  pass_turn(&other);
  await_child(&other);
  EXPECT_SNAPSHOT(kind, node, at, 2, "ram*2");
  EXPECT_CONTENTS(at, 8, "v2*2 v1*6");
}

MIRROR_CASE(fork, inherited_descriptor_acts_on_the_parent, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  struct partner other = start_child();
  if (other.in_child) {
    stamp(at, 8, 2);
    EXPECT_READ(node, at, 8, "v1*8");  // the parent's memory into the child's buffer
    EXPECT_TO_DEVICE(node, at, 8, "v1*8");
    EXPECT_SNAPSHOT(kind, node, at, 8, "dev-ro*8");
    EXPECT_CONTENTS(at, 8, "v2*8");
    pass_turn(&other);
    await_turn(&other);
    EXPECT_WRITE(node, at, 4, 3);
    EXPECT_CONTENTS(at, 8, "v2*8");
    end_child();
  }
  await_turn(&other);
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev-ro*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v3*4 v1*4");
}

MIRROR_CASE(fork, orphaned_descriptor, EACH_KIND) {
  // A child opens and migrates, its own child stays behind with the descriptor and the data.
  struct partner middle = start_child();
  if (middle.in_child) {
    const int node = open_node(kind->node);
    char* at = map_stamped(0, 8, 1);
    EXPECT_TO_DEVICE(node, at, 8, "v1*8");
    struct partner last = start_child();
    if (!last.in_child) end_child();
    await_turn(&last);  // comes with the end of the opener
    char* buffer = buffer_of(8);
    EXPECT_CONTENTS(at, 2, "v1*2");
    EXPECT_ERROR(EINVAL, command(node, DMIRROR_SNAPSHOT, at, buffer, 8).error);
    EXPECT_ERROR(EINVAL, to_device(node, at, 8).error);
    EXPECT_ERROR(EINVAL, to_system(node, at, 8).error);
    EXPECT_ERROR(EFAULT, read_and_drop(node, at, 8).error);
    EXPECT_ERROR(EFAULT, stamp_by_device(node, at, 8, 4).error);
    EXPECT_ERROR(EINVAL, make_exclusive(node, at, 8).error);
    EXPECT_ERROR(0, check_exclusive(node, at, 8).error);
    EXPECT(close(node) == 0);
    EXPECT_CONTENTS(at, 8, "v1*8");
    pass_turn(&middle);
    end_child();
  }
  await_turn(&middle);
  await_child(&middle);
}

MIRROR_CASE(fork, closing_in_the_child_keeps_the_parents, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  struct partner other = start_child();
  if (other.in_child) {
    EXPECT(close(node) == 0);
    end_child();
  }
  await_child(&other);
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev-ro*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(fork, last_descriptor_in_the_child_evicts, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    end_child();
  }
  EXPECT(close(node) == 0);  // not the last one
  pass_turn(&other);
  await_child(&other);
  const int again = open_node(kind->node);
  EXPECT_SNAPSHOT(kind, again, at, 8, "ram-ro*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(fork, grandchildren, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  struct partner child = start_child();
  if (child.in_child) {
    stamp(at, 1, 2);
    struct partner grandchild = start_child();
    if (grandchild.in_child) {
      EXPECT_CONTENTS(at, 8, "v2 v1*7");
      stamp(at, 2, 3);
      EXPECT_CONTENTS(at, 8, "v3*2 v1*6");
      end_child();
    }
    await_child(&grandchild);
    EXPECT_CONTENTS(at, 8, "v2 v1*7");
    end_child();
  }
  await_child(&child);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(fork, parent_unmaps, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 4, "v1*4");
    stamp(at + 2 * DMIRROR_PAGE, 4, 2);
    EXPECT_CONTENTS(at, 8, "v1*2 v2*4 v1*2");
    end_child();
  }
  REQUIRE(munmap(at, 8 * DMIRROR_PAGE) == 0);
  EXPECT_SNAPSHOT(kind, node, at, 8, "fault*8");
  pass_turn(&other);
  await_child(&other);
}

MIRROR_CASE(fork, child_unmaps_remaps_and_protects, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  struct partner other = start_child();
  if (other.in_child) {
    REQUIRE(munmap(at, 4 * DMIRROR_PAGE) == 0);
    EXPECT_EQ(SIGSEGV, touch_read(at));
    REQUIRE(mremap(at + 4 * DMIRROR_PAGE, 4 * DMIRROR_PAGE, 4 * DMIRROR_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                   window(100)) != MAP_FAILED);
    EXPECT_CONTENTS(window(100), 4, "v1@96*4");
    REQUIRE(mprotect(at + 8 * DMIRROR_PAGE, 4 * DMIRROR_PAGE, PROT_READ) == 0);
    EXPECT_EQ(SIGSEGV, touch_write(at + 8 * DMIRROR_PAGE));
    EXPECT_CONTENTS(at + 8 * DMIRROR_PAGE, 8, "v1*8");
    end_child();
  }
  await_child(&other);
  EXPECT_CONTENTS(at, 16, "v1*16");
  stamp(at, 16, 2);
  EXPECT_CONTENTS(at, 16, "v2*16");
}

MIRROR_CASE(fork, ranges_that_are_not_copied, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 24, 1);
  EXPECT_TO_DEVICE(node, at, 24, "v1*24");
  REQUIRE(madvise(at, 8 * DMIRROR_PAGE, MADV_DONTFORK) == 0);
  REQUIRE(madvise(at + 8 * DMIRROR_PAGE, 8 * DMIRROR_PAGE, MADV_WIPEONFORK) == 0);
  struct partner other = start_child();
  if (other.in_child) {
    EXPECT_EQ(SIGSEGV, touch_read(at));
    EXPECT_CONTENTS(at + 8 * DMIRROR_PAGE, 16, "0*8 v1*8");
    end_child();
  }
  await_child(&other);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*16");
  EXPECT_CONTENTS(at, 24, "v1*24");
}

MIRROR_CASE(fork, many_children_at_once, EACH_KIND) {
  enum { CHILDREN = 8 };
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  struct partner others[CHILDREN];
  for (unsigned i = 0; i < CHILDREN; i++) {
    others[i] = start_child();
    if (others[i].in_child) {
      stamp(at + i * DMIRROR_PAGE, 1, 2 + i);
      char contents[40];
      EXPECT_CONTENTS(at + 32 * DMIRROR_PAGE, 32, "v1*32");
      snprintf(contents, sizeof contents, "v%u", 2 + i);
      EXPECT_CONTENTS(at + i * DMIRROR_PAGE, 1, contents);
      end_child();
    }
  }
  for (unsigned i = 0; i < CHILDREN; i++) await_child(&others[i]);
  EXPECT_CONTENTS(at, 64, "v1*64");
}

MIRROR_CASE(fork, vfork_shares_the_space, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  static char path[] = "/bin/true";
  static char* const program[] = {path, NULL};
  const pid_t pid = vfork();
  if (pid == 0) {
    execv(program[0], program);
    _exit(0);
  }
  int status;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
}
