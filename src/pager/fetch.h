// Fetch: one migration of pages from the device back home.
//
// setup takes the device pages (the fault's own page is locked already); the device loads into landing frames; pages +
// finalize copy them home and free the device pages. What could not be loaded gets no destination and stays where it
// is.
#pragma once

#include "migrate/migrate_vma.h"
#include "pager/pager_core.h"

namespace whimbrel {

class Fetch {
 public:
  Fetch(PagerCore& core, Lane& lane) noexcept : core_(core), lane_(lane) {}

  struct Outcome {
    PageCount home;             // came home
    PageCount failed;           // could not be loaded
    bool no_mapping = false;    // the range is not part of one mapping
    bool no_memory = false;     // no landing frame even for one page
    bool fault_home = false;    // the page of the fault came home
    bool fault_failed = false;  // or could not be loaded
    Error error{};              // of the last failed load
  };
  // Takes a fresh huge page for the next run(), which has to be for a whole unit: it moves into the program as it is. False:
  // there is none now. On the fault thread.
  [[nodiscard]] bool take_unit() noexcept;
  // `range`: at most Lane::kPages, inside one mapping. `fault_page` as in MigrateVma; it stands at `fault_at`.
  [[nodiscard]] Outcome run(PageRange range, Pfn fault_page, PageIndex fault_at) noexcept;

  // Brings home everything of ours in the range, window by window. Pages that are on their way elsewhere are waited
  // for, `patience` times a twentieth of a millisecond without any progress. kBusy: that was not enough.
  static constexpr int kPatient = 20'000;  // an eviction of a whole lane takes some milliseconds
  static constexpr int kHurried = 20;      // on the fault thread, which may itself hold one of the pages
  [[nodiscard]] Result<void> all_of(PageRange range, int patience, PageCount* home = nullptr) noexcept;

 private:
  [[nodiscard]] bool collect(PageRange range) noexcept;
  void assign_frames() noexcept;
  void assign_unit() noexcept;
  void build_loads() noexcept;
  void give_up_failed_loads() noexcept;
  // Whether the device should keep what comes home now.
  [[nodiscard]] bool may_keep_copies() noexcept;
  // Keeps the copies of what comes home, before finalize drops their last reference.
  void keep_copies() noexcept;
  // Pages that stayed away after all must not be held by anybody else.
  void forget_copies_of_those_still_away() noexcept;
  // After the pages step.
  [[nodiscard]] bool came_home(std::size_t i) const noexcept {
    return lane_.src[i].valid() && lane_.src[i].migrating() && lane_.dst[i].valid();
  }
  // The next window of pages of ours in `range`, clipped to one mapping; empty: none.
  [[nodiscard]] PageRange next_window(PageRange range) noexcept;

  PagerCore& core_;
  Lane& lane_;
  Pfn unit_;  // from take_unit()
  MigrateVma args_{};
  PageIndex first_;
  std::size_t fault_entry_ = Lane::kPages;
  bool kept_ = false;  // copies, of at least some
  Outcome outcome_{};
};

}  // namespace whimbrel
