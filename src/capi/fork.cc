// fork of a program that uses the driver interface: the child gets its memory complete and no engine. Drivers' devices are
// the parent's; so everything comes home before the fork, and nothing leaves until it is over.
#include "base/check.h"
#include "capi/capi.h"
#include "linux/sys.h"

using namespace whimbrel;

void mm_struct::prepare_fork() noexcept {
  CHECK(!flights_.has_outbound_of(sys::gettid()), "fork between setup and finalize of a migration");
  outbound_.close();  // waits for what is on its way out
  constexpr PageRange kEverything{PageIndex(0), PageCount(std::uint64_t{1} << (kUserAddressBits - kPageShift))};
  all_home_ = bring_home(kEverything) >= 0;
}

void mm_struct::after_fork_in_parent() noexcept { outbound_.open(); }

void mm_struct::after_fork_in_child() noexcept {
  // A child that would read zeros where its parent has data must not run.
  CHECK(all_home_, "a driver could not bring its pages home before a fork: the child is stopped");
  // The threads do not exist here; what they shared is left as it is. The descriptors act on the parent.
  capi::set_current(nullptr);
  const Descriptors& mine = mmu_->descriptors();
  for (int i = 0; i < Descriptors::kCount; ++i) {
    const auto which = static_cast<Descriptors::Which>(i);
    if (mine.has(which)) sys::close(mine[which]);
  }
}
