// What this kernel lets this user do, as a table: every row is found out by doing the thing, not by reading a version
// number. `whimbrel doctor` prints it; the ladder at its top is the one an engine climbs, and a session one rung further.
//
// Plain data with texts in fixed places: nothing here allocates or prints.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/memory_source.h"
#include "linux/userfault.h"

namespace whimbrel {

enum class ProbeId : std::uint8_t {
  kKernel,
  kUnprivilegedSetting,
  kRungSystemCall,
  kRungDevice,
  kRungUserMode,
  kGuardedArenas,
  kMove,
  kKernelFaults,
  kWriteProtect,
  kPoison,
  kPagemapScan,
  kProcmapQuery,
  kProcessMadvise,
  kMappingNews,
  kHugePages,
  kPinCounters,
  kMapCount,
  kAddressSpace,
  kOpenFiles,
  kLockedMemory,
  kOvercommit,
  kCount,
};

struct ProbeRow {
  enum class Weight : std::uint8_t {
    kNeeded,  // without it there is no engine
    kHelps,   // without it something is lost; `consequence` says what
    kFact,    // a setting worth knowing
  };
  ProbeId id = ProbeId::kKernel;
  Weight weight = Weight::kFact;
  bool works = false;
  int sys = 0;                   // errno of what was refused, 0 when nothing was
  const char* name = "";         // "UFFDIO_MOVE"
  const char* consequence = "";  // what it means that it works, or that it does not
  const char* fix = "";          // the exact command that would help, or what else to do; empty when all is well
  char detail[64] = {};          // what was seen: "6.18.44", "65530", "not permitted"
};

struct ProbeReport {
  ProbeRow rows[static_cast<std::size_t>(ProbeId::kCount)];
  Ladder ladder;  // all three rungs of userfaultfd proved
  bool guarded = false;  // and what is left without it

  [[nodiscard]] const ProbeRow& operator[](ProbeId id) const noexcept { return rows[static_cast<std::size_t>(id)]; }
  // Whether an engine that uses userfaultfd can be started here.
  [[nodiscard]] bool usable() const noexcept { return ladder.chosen >= 0; }
};

// Takes a few milliseconds. Opens and closes descriptors in the caller's table; leaves nothing
// behind but a SIGSEGV handler that passes on what is not its own.
[[nodiscard]] ProbeReport probe(MemorySource& memory) noexcept;

}  // namespace whimbrel
