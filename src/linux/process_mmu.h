// ProcessMmu: an Mmu that drives the page tables of the process it runs in, and what an engine needs of it beyond the port.
//
// UserfaultMmu moves any private memory of the process; GuardedMmu, where userfaultfd is not to be had, only memory of arenas
// that it has made itself.
#pragma once

#include "port/mmu.h"

namespace whimbrel {

class ProcessMmu : public Mmu {
 public:
  // Gives the object back to the memory it was made in. On a thread that may use its descriptors.
  virtual void destroy() noexcept = 0;

  // For people: by which means memory is managed.
  [[nodiscard]] virtual const char* rung_name() const noexcept = 0;
  // Where all windows are and will be: the pager must leave these pages alone.
  [[nodiscard]] virtual PageRange window_range() const noexcept = 0;
  // wait_for_message() also ends, without a message, when this descriptor of the engine is readable. -1: none.
  virtual void wait_also_for(int descriptor) noexcept = 0;

  // In a forked child while it has one thread: frees locks that a thread of the parent may have held.
  virtual void reset_after_fork() noexcept = 0;
  // In a forked child, after reset_after_fork(), on the thread that will own the child's descriptors. Nothing is watched;
  // windows keep their contents.
  [[nodiscard]] virtual Result<void> reopen_in_child() noexcept = 0;
};

}  // namespace whimbrel
