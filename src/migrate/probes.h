// Static probes (USDT) for perf, bpftrace and SystemTap: a nop each while nobody looks.
//
//   migrate:set_migration_pte     address, frame number, pages    slots frozen for a migration
//   migrate:remove_migration_pte  address, frame number, pages    slots usable again, in RAM or as device slots
//   whimbrel:step                 TraceStep, address, other, pages     every other step of the trace
//
// The first two have the names of the kernel's trace points for the same steps; one probe stands for a run of neighbours,
// and says how many pages it has where the kernel's says of which order one page is. Without the header (Debian:
// systemtap-sdt-dev) there are no probes, and nothing else is missing.
#pragma once

#if __has_include(<sys/sdt.h>)
#include <sys/sdt.h>
#define WHIMBREL_PROBE_SET_MIGRATION_PTE(address, frame, pages) \
  DTRACE_PROBE3(migrate, set_migration_pte, address, frame, pages)
#define WHIMBREL_PROBE_REMOVE_MIGRATION_PTE(address, frame, pages) \
  DTRACE_PROBE3(migrate, remove_migration_pte, address, frame, pages)
#define WHIMBREL_PROBE_STEP(what, address, other, pages) DTRACE_PROBE4(whimbrel, step, what, address, other, pages)
#else
#define WHIMBREL_PROBE_SET_MIGRATION_PTE(address, frame, pages) (void)(address), (void)(frame), (void)(pages)
#define WHIMBREL_PROBE_REMOVE_MIGRATION_PTE(address, frame, pages) (void)(address), (void)(frame), (void)(pages)
#define WHIMBREL_PROBE_STEP(what, address, other, pages) (void)(what), (void)(address), (void)(other), (void)(pages)
#endif
