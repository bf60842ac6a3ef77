// What of a program's memory can be managed: rules over one mapping, without any state.
#pragma once

#include "port/mmu.h"

namespace whimbrel {

enum class Eligibility : std::uint8_t {
  kForeign,  // neither counted nor moved: shared, a file's own pages, the kernel's
  kFixed,    // counts as resident, cannot leave: locked, write-once data of files, executable, wiped on fork
  kManaged,
};

// `mapping` with the flags of the slow query; where they are unknown (kFlagsUnknown) the answer is what it would be
// without locking and wiping.
[[nodiscard]] inline Eligibility eligibility_of(const Mapping& mapping, bool stacks) {
  using M = Mapping;
  if (mapping.has_any(M::kShared | M::kSpecial | M::kHugetlb | M::kKernelOwned)) return Eligibility::kForeign;
  if (mapping.has(M::kFileBacked)) {
    // Pages of it that were written are the process's own memory, but cannot move.
    return mapping.has(M::kWritable) ? Eligibility::kFixed : Eligibility::kForeign;
  }
  // A reservation without access holds nothing yet. Pages that were written before access was taken away do exist, and
  // are counted; they cannot move, since both ends of a move must be writable in the same way.
  if (!mapping.has(M::kReadable | M::kWritable) || mapping.has(M::kExecutable)) return Eligibility::kFixed;
  if (mapping.has_any(M::kLocked | M::kWipeOnFork)) return Eligibility::kFixed;
  if (mapping.has(M::kStack) && !stacks) return Eligibility::kFixed;
  return Eligibility::kManaged;
}

}  // namespace whimbrel
