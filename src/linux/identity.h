// Identity: users, groups and capabilities of a thread. In the kernel each thread has its own; libc gives a changed one to
// all threads it knows, and engine threads are none of those, so they follow by themselves.
//
// No allocation, no errno: for engine threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"

namespace whimbrel {

struct Identity {
  static constexpr std::size_t kMostGroups = 1024;

  std::uint32_t users[3] = {};   // real, effective, saved
  std::uint32_t groups[3] = {};  // the same
  std::uint64_t inheritable = 0, permitted = 0, effective = 0;  // capabilities
  bool no_new_privileges = false;
  bool all_others = true;  // false: there are more supplementary groups than fit
  std::size_t other_count = 0;
  std::uint32_t others[kMostGroups] = {};  // supplementary groups

  // Of thread `tid` of this process, from the kernel's own report. kNotFound: it has ended.
  [[nodiscard]] static Result<void> of_thread(int tid, Identity& out) noexcept;
  // Takes one apart that has the form of /proc/PID/status. False: it is not complete, or of a thread that has ended.
  [[nodiscard]] static bool parse(const char* text, std::size_t length, Identity& out) noexcept;

  [[nodiscard]] bool same_as(const Identity& other) const noexcept;
  // Gives the calling thread this identity, as far as it still may; then nothing of it is more than here. An error means
  // that the thread has rights left that this identity has not: the process must not go on.
  [[nodiscard]] Result<void> adopt() const noexcept;
};

}  // namespace whimbrel
