// Read-only memory made writable, and locked memory unlocked, for a moment.
//
// Pages move only between writable mappings that agree on protection and on being locked (UA-04); the kernel asks for
// none of it (SET-05, MA-12). So what stands in the way is lifted around each step that moves pages, and put back. In that
// moment a forbidden write of another thread to a page that is there would go through; a page that is away makes it wait.
#pragma once

#include <sys/mman.h>

#include "linux/sys.h"
#include "migrate/address_space.h"

namespace whimbrel::mirror {

// The program's own mprotect() and a lift exclude each other: else the lift would put stale protection back.
Mutex& protection_mutex() noexcept;

// Holds the lock from the lift to the restore, which the analysis cannot follow.
class ProtectionLift {
 public:
  // Lifts the protection of `range` when it lies in one private anonymous mapping that may be read but not written.
  ProtectionLift(AddressSpace& space, PageRange range) noexcept NO_THREAD_SAFETY_ANALYSIS
      : space_(space), range_(range) {
    const Result<Mapping> before = space.mmu().mapping_at_or_above(range.first);
    if (!before || !needs_lift(*before, range)) return;
    protection_mutex().lock();
    // Asked again: only now nobody changes it.
    const Result<Mapping> mapping = space.mmu().mapping_at_or_above(range.first);
    if (mapping && needs_lift(*mapping, range) && set_protection(PROT_READ | PROT_WRITE)) {
      protection_ = PROT_READ | (mapping->has(Mapping::kExecutable) ? PROT_EXEC : 0);
      lifted_ = true;
      return;
    }
    protection_mutex().unlock();
  }
  ~ProtectionLift() { restore(); }
  ProtectionLift(const ProtectionLift&) = delete;
  ProtectionLift& operator=(const ProtectionLift&) = delete;

  [[nodiscard]] bool lifted() const noexcept { return lifted_; }
  void restore() noexcept NO_THREAD_SAFETY_ANALYSIS {
    if (!lifted_) return;
    lifted_ = false;
    (void)set_protection(protection_);
    protection_mutex().unlock();
    space_.mmu().wake(range_);  // what came home meanwhile woke nobody, so that nobody finds the mapping writable
  }

 private:
  static bool needs_lift(const Mapping& mapping, PageRange range) noexcept {
    return mapping.range.contains(range) && mapping.is_private_anonymous() && mapping.has(Mapping::kReadable) &&
           !mapping.has(Mapping::kWritable);
  }
  bool set_protection(int protection) const noexcept {
    return sys::mprotect(reinterpret_cast<void*>(range_.first.address().raw()), range_.count.bytes(), protection).has_value();
  }

  AddressSpace& space_;
  const PageRange range_;
  int protection_ = 0;
  bool lifted_ = false;
};

// Whether the program has locked any memory so far: asking for a mapping's lock is slow.
std::atomic<bool>& memory_was_locked() noexcept;

class LockLift {
 public:
  LockLift(AddressSpace& space, PageRange range) noexcept
      : at_(reinterpret_cast<void*>(range.first.address().raw())), bytes_(range.count.bytes()) {
    if (range.empty() || !memory_was_locked().load(std::memory_order_relaxed)) return;
    const Result<Mapping> mapping = space.mmu().detailed_mapping_at_or_above(range.first);
    lifted_ = mapping && mapping->range.contains(range) && mapping->has(Mapping::kLocked) && sys::munlock(at_, bytes_);
  }
  // Locked again as far as it is there, and later when it comes: nothing that is away is brought home by this.
  ~LockLift() {
    if (lifted_) (void)sys::lock_on_fault(at_, bytes_);
  }
  LockLift(const LockLift&) = delete;
  LockLift& operator=(const LockLift&) = delete;

 private:
  void* const at_;
  const std::size_t bytes_;
  bool lifted_ = false;
};

}  // namespace whimbrel::mirror
