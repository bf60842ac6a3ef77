// Discarder: drops pages of the program while the space's lock is held.
//
// MADV_DONTNEED on watched memory sends a message, and does not return before it has been read; the thread that holds the
// lock must do the reading. So a thread of its own makes the call.
#pragma once

#include "migrate/address_space.h"

namespace whimbrel::mirror {

class Session;

class Discarder final : public QuietDiscard {
 public:
  [[nodiscard]] bool discard_locked(AddressSpace& space, PageRange range) noexcept override;
  // In a forked child: the thread is the parent's.
  void reset_after_fork() noexcept;

 private:
  static void body(void* self) noexcept;

  bool started_ = false;  // by whoever holds the space's lock, as is range_
  PageRange range_;
  bool dropped_ = false;
  std::atomic<bool> done_{false};
  Event wanted_, finished_;
};

}  // namespace whimbrel::mirror
