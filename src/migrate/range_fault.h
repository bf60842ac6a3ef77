// hmm_range_fault: what stands behind a range of virtual addresses, for a device that wants to reach it (HR-01..HR-17).
//
// The result is a snapshot: valid only as long as the notifier's sequence says so (MN-06). No lock or reference is kept.
#pragma once

#include <cstdint>

#include "migrate/interval_notifier.h"

namespace whimbrel {

// One word per page (HR-02). Out: VALID, WRITE, ERROR, mapping order, frame number. In: REQ_FAULT, REQ_WRITE share the
// bits of VALID and WRITE.
class HmmPfn {
 public:
  static constexpr std::uint64_t kValid = std::uint64_t{1} << 63, kReqFault = kValid;
  static constexpr std::uint64_t kWrite = std::uint64_t{1} << 62, kReqWrite = kWrite;
  static constexpr std::uint64_t kError = std::uint64_t{1} << 61;
  static constexpr std::uint64_t kSticky = std::uint64_t{7} << 58;  // DMA bits of the caller, kept
  static constexpr unsigned kOrderShift = 53;

  constexpr HmmPfn() = default;
  constexpr explicit HmmPfn(std::uint64_t raw) : raw_(raw) {}
  [[nodiscard]] constexpr std::uint64_t raw() const { return raw_; }
  [[nodiscard]] constexpr bool valid() const { return (raw_ & kValid) != 0; }
  [[nodiscard]] constexpr bool writable() const { return (raw_ & kWrite) != 0; }
  [[nodiscard]] constexpr bool error() const { return (raw_ & kError) != 0; }
  [[nodiscard]] constexpr unsigned order() const { return static_cast<unsigned>(raw_ >> kOrderShift) & 31; }
  [[nodiscard]] constexpr Pfn pfn() const { return Pfn(raw_ & ((std::uint64_t{1} << kOrderShift) - 1)); }

 private:
  std::uint64_t raw_ = 0;
};

struct HmmRange {
  NotifierRegistry* registry = nullptr;
  IntervalNotifier* notifier = nullptr;
  std::uint64_t notifier_seq = 0;      // from read_begin()
  VirtualAddress start, end;           // page aligned, inside the subscription
  HmmPfn* pfns = nullptr;              // one word per page
  std::uint64_t default_flags = 0;     // HR-03: request of a page = (its word & pfn_flags_mask) | default_flags
  std::uint64_t pfn_flags_mask = 0;
  const void* dev_private_owner = nullptr;
  // Engine-only addition: private anonymous memory in here is watched when a page of it must be faulted in. What belongs
  // to the program's own userfaultfd is found out by that, and is EFAULT (HR-17): nobody may wait for the program here.
  PageRange watch_within;
};

// kInvalid: empty or unaligned range. kBusy: collision, call read_begin() again (HR-09). kFault: EFAULT of the kernel.
// kNotPermitted: write wanted where the mapping forbids it (HR-06). Words before the failing page are results, from it on
// they are still inputs (HR-10).
// A RAM page's frame number is its own virtual page number: that is where its bytes can be read in this process; the
// shared zero page has number 0.
// May fault pages in, as the program itself would: never on the fault thread, nor with an engine lock held.
[[nodiscard]] Result<void> hmm_range_fault(AddressSpace& space, HmmRange& range) noexcept;

}  // namespace whimbrel
