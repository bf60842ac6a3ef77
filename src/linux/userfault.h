// Opening a userfaultfd: the ladder of ways to get one, and what each was proved to be able to do.
//
// Feature bits and permissions are promises; filters and policies break them. So a rung counts only after a scratch
// page was really moved, copied, faulted on and unmapped through a descriptor of that rung. UFFDIO_API answers once
// per descriptor: the proof uses descriptors of its own and leaves none behind.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace whimbrel {

enum class Rung : std::uint8_t {
  kSystemCall,    // userfaultfd(2), kernel faults allowed
  kDevice,        // /dev/userfaultfd, kernel faults allowed
  kUserModeOnly,  // userfaultfd(2) for faults of user code only: system calls on away memory give EFAULT
};
inline constexpr Rung kRungs[] = {Rung::kSystemCall, Rung::kDevice, Rung::kUserModeOnly};
[[nodiscard]] const char* rung_name(Rung rung) noexcept;

struct UserfaultRequest {
  bool write_protect = true;         // ask for write-protect faults where offered
  bool write_protect_async = false;  // instead of messages: the kernel notes writes by itself (PAGEMAP_SCAN tells)
  bool fork_event = false;           // needs CAP_SYS_PTRACE; left out without an error where refused
  int device_fd = -1;                // an already open /dev/userfaultfd, e.g. from before privileges were dropped
};

struct Userfault {
  int fd = -1;
  std::uint64_t features = 0;  // granted
};

// What a rung really did on scratch memory. `failure` tells why the first missing ability is missing.
struct Proof {
  bool opened = false;
  bool move = false;
  bool copy = false;
  bool faults = false;         // a touch of a missing page arrived as a message and could be resolved
  bool kernel_faults = false;  // the same for a touch by a system call
  bool events = false;         // REMOVE, REMAP and UNMAP arrived
  bool write_protect = false;
  bool poison = false;
  std::uint64_t features = 0;
  Error failure{};

  [[nodiscard]] bool serves() const noexcept { return opened && copy && faults && events; }
};

// A descriptor of that rung with the events and abilities of `request` that are offered. The caller closes it.
[[nodiscard]] Result<Userfault> open_userfault(Rung rung, const UserfaultRequest& request) noexcept;

// The features the kernel offers to that rung (bits of uapi.h).
[[nodiscard]] Result<std::uint64_t> offered_features(Rung rung, const UserfaultRequest& request) noexcept;

// The ladder climbed: which rung an engine would use, and why not an earlier one.
struct Ladder {
  Proof proofs[3];        // in the order of kRungs; those behind the chosen one are empty unless all were asked for
  int chosen = -1;        // index into kRungs; -1: none works
  Error first_failure{};  // of the first rung, when none works
};
struct LadderRules {
  bool allow_user_mode_only = true;
  bool require_move = true;
  bool prove_all = false;  // for reports
};
[[nodiscard]] Ladder climb(const UserfaultRequest& request, const LadderRules& rules) noexcept;

// Takes well under a millisecond where everything works; at most about two seconds where nothing answers.
[[nodiscard]] Proof prove(Rung rung, const UserfaultRequest& request) noexcept;

}  // namespace whimbrel
