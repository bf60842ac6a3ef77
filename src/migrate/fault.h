// What happens when the program touches a slot that is not there.
//
//   message → queue → serve(): the slot is
//     plain RAM       somebody resolved it meanwhile, or it is a hole: HolePolicy decides how much zero memory to give
//     migrating       nothing: finalize wakes (MW)
//     on a device     PageMapOps::migrate_to_ram, here or on a service thread (CF)
//     exclusive       the device's access is revoked and the page put back (EX-04)
//     poisoned        SIGBUS for this access
#pragma once

#include "migrate/address_space.h"
#include "port/wake_placement.h"

namespace whimbrel {

// The callback's argument (the kernel's vm_fault, CF-04).
struct FaultContext {
  AddressSpace& space;
  Pfn page;                 // locked by the fault path, with one extra reference; the unit's head when huge
  VirtualAddress address;   // the faulting byte
  bool write;
  bool huge;                // the slot is a 2 MiB one
  std::uint32_t thread;     // kernel thread id of the toucher, 0 when unknown
  bool beside = false;      // the toucher goes on on the processor that serves it
};

// Decides about holes: the pager counts them against its budget and serves growing windows.
class HolePolicy {
 public:
  virtual ~HolePolicy() = default;
  // `hole` is the page touched, `mapping` what contains it. Must resolve the page (copy, zero) and wake, or return false
  // for the default: one page of zeros. Called without the lock, on the fault thread.
  [[nodiscard]] virtual bool serve_hole(AddressSpace& space, const PendingFault& fault, const Mapping& mapping) noexcept = 0;
  // A write to a page that is there but write-protected, in a slot that is nothing of ours. Must lift the protection and
  // wake, or return false for the default: that one page.
  [[nodiscard]] virtual bool serve_write_protect(AddressSpace& space, const PendingFault& fault) noexcept {
    (void)space, (void)fault;
    return false;
  }
};

// The default of the kernel for one empty slot: a page of zeros after a write, the shared zero page after a read. Wakes in
// every case. False: the slot has become something of ours, to be served as that.
[[nodiscard]] bool fill_hole_locked(AddressSpace& space, const PendingFault& fault) noexcept REQUIRES(space.mutex());

// Where faults go that may not be served on the fault thread.
class ServiceQueue {
 public:
  virtual ~ServiceQueue() = default;
  // False: no room; the fault is dropped and the toucher re-driven, so that it comes again.
  [[nodiscard]] virtual bool push(const PendingFault& fault) noexcept = 0;
};

class FaultService {
 public:
  FaultService(AddressSpace& space, HolePolicy* holes, ServiceQueue* queue) noexcept
      : space_(space), holes_(holes), queue_(queue) {}

  // Before the first fault. Borrowed.
  void set_placement(WakePlacement* placement) noexcept { placement_ = placement; }

  // Serves one fault completely or hands it on. `on_service_thread`: callbacks that are not inline may run here.
  // `up_to_date`: all messages have been read since this fault's own.
  void serve(const PendingFault& fault, bool on_service_thread, bool up_to_date = false) noexcept;

  // Reads messages, applies them and serves every queued fault; returns how many. What the fault thread does between
  // two sleeps.
  std::size_t run_once() noexcept;

 private:
  void serve_hole(const PendingFault& fault) noexcept;
  void serve_coherent(const PendingFault& fault) noexcept;
  void serve_device(const PendingFault& fault, PageEntry entry, bool on_service_thread) noexcept;
  void fail_access(const PendingFault& fault) noexcept;

  AddressSpace& space_;
  HolePolicy* const holes_;
  ServiceQueue* const queue_;
  WakePlacement* placement_ = nullptr;
  bool beside_ = false;  // of the fault that is being served on the fault thread
};

}  // namespace whimbrel
