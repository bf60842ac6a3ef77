// What a walk over the program's pages answers while the kernel moves them elsewhere in RAM.
#include "migrate/range_fault.h"
#include "sim/steps/steps.h"

namespace whimbrel::sim {
namespace {

class RangeFaultSteps : public Steps {
 protected:
  static constexpr std::uint64_t kPages = 4;
  // How many of the pages are said to be there.
  std::uint64_t walk(std::uint64_t flags) {
    HmmPfn words[kPages];
    HmmRange range;
    range.start = home.address();
    range.end = (home + PageCount(kPages)).address();
    range.pfns = words;
    range.default_flags = flags;
    EXPECT_TRUE(hmm_range_fault(space, range).has_value());
    std::uint64_t there = 0;
    for (const HmmPfn& word : words) there += word.valid() ? 1 : 0;
    return there;
  }
};

TEST_F(RangeFaultSteps, ASnapshotLooksAgainAtPagesThatAreBeingMoved) {
  map_unit(false, kPages);
  mmu.move_in_scans(3);
  EXPECT_EQ(walk(0), kPages);
}

TEST_F(RangeFaultSteps, WhatStaysLikeThatIsNotThere) {
  map_unit(false, kPages);
  mmu.move_in_scans(1'000'000);
  EXPECT_EQ(walk(0), 0u);
  EXPECT_LT(mmu.scans(), 1000);  // believed before long
  mmu.move_in_scans(0);
}

TEST_F(RangeFaultSteps, ARequestIsFaultedInAtOnce) {
  map_unit(false, kPages);
  mmu.move_in_scans(1);
  EXPECT_EQ(walk(HmmPfn::kReqFault), kPages);
  EXPECT_EQ(mmu.populated(), static_cast<int>(kPages));  // which waits inside the kernel, instead of looking again
}

}  // namespace
}  // namespace whimbrel::sim
