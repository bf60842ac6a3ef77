// HoleFill: serves a first touch with zeros, for a growing window when the program walks.
//
// Real pages, never the shared zero page: a write to that would take memory without the engine's knowledge, and the
// limit could not be kept. In a range that the program has advised for huge pages, and where it streams through fresh memory,
// a whole untouched 2 MiB unit gets a fresh huge page.
#pragma once

#include "pager/pager_core.h"

namespace whimbrel {

class HoleFill {
 public:
  HoleFill(PagerCore& core, Lane& lane) noexcept : core_(core), lane_(lane) {}

  // Resolves the page one way or the other and wakes its toucher; returns how many pages were filled, and around where.
  struct Filled {
    PageRange around;
    PageCount pages;
  };
  Filled serve(PageIndex page, const Mapping& mapping) noexcept;

 private:
  // `streaming`: the touch continues a stream that has come to its largest window, at the unit's first page.
  [[nodiscard]] bool wants_huge(PageRange unit, bool streaming) noexcept;
  // Gives the unit one fresh huge page; returns how many pages are in place (all or, when something came in between,
  // fewer).
  PageCount fill_huge(PageRange unit) noexcept;
  // The part of the window around `page` that is empty, as far as the kernel knows.
  [[nodiscard]] PageRange empty_part(PageRange window, PageIndex page) noexcept;
  // Fills the window as far as it can. False: the page itself is not settled yet; try again, with a smaller window.
  [[nodiscard]] bool fill(PageRange window, PageIndex page, int tries, PageCount* filled) noexcept;

  PagerCore& core_;
  Lane& lane_;
};

}  // namespace whimbrel
