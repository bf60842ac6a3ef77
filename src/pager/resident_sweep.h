// ResidentSweep: the policy's view of real memory: regions that may be evicted, as the kernel's page table has them
// now, less what is pinned and what refused lately.
//
// Reads ahead a stretch of the page table at a time and keeps it for the duration of one question.
#pragma once

#include <array>

#include "pager/eviction_policy.h"
#include "pager/pin_table.h"
#include "pager/refusals.h"
#include "pager/region_table.h"
#include "port/mmu.h"

namespace whimbrel {

class ResidentSweep final : public ResidentView {
 public:
  ResidentSweep(Mmu& mmu, const RegionTable& regions, const PinTable& pins, const RefusalTable& refusals) noexcept
      : mmu_(mmu), regions_(regions), pins_(pins), refusals_(refusals) {}

  // Forgets what was read ahead. `now_ns` decides which refusals still hold; `shared_too`: pages that other processes
  // map as well, which cannot move as they are, count as well.
  void begin(std::int64_t now_ns, bool shared_too = false) noexcept {
    now_ns_ = now_ns;
    shared_too_ = shared_too;
    ahead_ = PageRange();
    read_ahead_ = kLeastReadAhead;
    run_count_ = 0;
    refused_ = false;
  }
  // Memory of the program's own, as far as the page table tells.
  [[nodiscard]] static bool is_movable(const PageRun& run) noexcept {
    return (run.kind & PageRun::kPresent) != 0 && (run.kind & (PageRun::kZero | PageRun::kFile)) == 0;
  }
  [[nodiscard]] bool next(PageIndex from, Clump* out) noexcept override;
  // Since begin(): pages were passed over that may be to be had another time: they refused lately, or what is known of their
  // mapping is in doubt or not complete yet.
  [[nodiscard]] bool saw_refused() const noexcept { return refused_; }

 private:
  // Pages looked at by one reading: few where residents lie dense, more and more where there are none. The most bounds
  // the time the pager's lock is held.
  static constexpr std::uint64_t kLeastReadAhead = kPagesPerHuge, kMostReadAhead = 16384;

  // Makes `ahead_` begin at or below `at` and end above it.
  void read_ahead(PageIndex at) noexcept;
  // The first clump of the region in [from, end of ahead_). False: none there.
  [[nodiscard]] bool find(const Region& region, PageIndex from, Clump* out) noexcept;
  [[nodiscard]] bool is_candidate(const PageRun& run) const noexcept;
  // The clump that starts at `first`, a page of run number `run`, and ends below `limit`.
  [[nodiscard]] Clump clump_at(const Region& region, PageIndex first, PageIndex limit, std::size_t run) const noexcept;
  // Looks at the clump that starts at *at and moves *at behind what it has decided about. True: *out is to be had.
  [[nodiscard]] bool accept(const Region& region, std::size_t run, PageIndex* at, Clump* out) noexcept;

  Mmu& mmu_;
  const RegionTable& regions_;
  const PinTable& pins_;
  const RefusalTable& refusals_;
  std::int64_t now_ns_ = 0;
  PageRange ahead_;
  std::uint64_t read_ahead_ = kLeastReadAhead;  // pages, multiple of kLeastReadAhead
  std::size_t run_count_ = 0;
  bool refused_ = false;
  bool shared_too_ = false;
  std::array<PageRun, 256> runs_{};
};

}  // namespace whimbrel
