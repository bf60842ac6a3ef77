// KeptCopies: what the device still holds of pages that came home.
//
// A page that is brought home and not changed need not be stored again when it leaves: its copy on the device stands for it.
// So the copy is kept, with the page's fingerprint, and looked for when the page leaves. Nothing is write-protected and no
// fault is taken to find out: a page whose fingerprint is another has been changed, and its copy goes.
//
// The table owns one reference to the device page of each copy; whoever takes one out or displaces it gets the reference
// and drops it, after the lock. It knows nothing for certain about the pages themselves: an entry for memory that is gone is
// no more than wasted room, and would be found out by its fingerprint.
//
// A fixed table, eight places to a page number; where they are full the oldest makes way. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/memory_source.h"
#include "base/zeroed_table.h"
#include "pager/page_digest.h"

namespace whimbrel {

struct KeptCopy {
  Pfn pfn;  // of the device; none: there is no copy
  PageDigest digest;
  [[nodiscard]] explicit operator bool() const noexcept { return pfn != Pfn(); }
};

class KeptCopies {
 public:
  // Room for about `pages` copies.
  KeptCopies(MemorySource& source, std::size_t pages) noexcept;
  [[nodiscard]] bool usable() const noexcept { return !pages_.empty() && !copies_.empty(); }
  [[nodiscard]] std::uint64_t size() const noexcept { return size_; }

  // Whether the copies of a fetch should be kept. A program that changes most of what it brings home would fill the device
  // with copies that nothing comes of: then only one fetch in sixteen keeps them, to notice when that ends.
  [[nodiscard]] bool pays() noexcept;
  // A page with a copy has left; had it been changed?
  void judge(bool changed) noexcept;

  // Most copies there may be, within the room there is. What is there already stays.
  void set_most(std::uint64_t copies) noexcept { most_ = copies; }

  // Takes over a reference to `pfn`, the copy of `page`. Returns a reference that is given up for it (an older copy of this
  // page or another one, or `pfn` itself when there is no room); none: nothing.
  [[nodiscard]] Pfn keep(PageIndex page, Pfn pfn, const PageDigest& digest) noexcept;
  // The copy of `page` with its reference, if there is one.
  [[nodiscard]] KeptCopy take(PageIndex page) noexcept;
  // The program has dropped these pages: their copies are of no use any more, and go with the next take_dropped().
  void drop(PageRange range) noexcept;
  void drop_all() noexcept { drop_everything_ = size_ != 0; }
  // Takes dropped copies out, as many as `out` has room for; how many. 0: there are no more.
  [[nodiscard]] std::size_t take_dropped(std::span<Pfn> out) noexcept;
  [[nodiscard]] bool has_dropped() const noexcept { return drop_everything_ || dropped_ != 0; }

  // In a forked child: goes through all copies; those for which `stays(page, pfn)` is false are forgotten, with no reference
  // given back.
  template <class Stays>
  void review(Stays stays) noexcept {
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      if (pages_[i] != 0 && !stays(PageIndex(pages_[i] & ~kDropped), copies_[i].pfn)) clear(i);
    }
  }

 private:
  static constexpr std::size_t kWays = 8;
  static constexpr std::uint64_t kDropped = std::uint64_t{1} << 63;

  [[nodiscard]] std::size_t set_of(PageIndex page) const noexcept { return page.raw() % (pages_.size() / kWays) * kWays; }
  // The place of `page`, dropped or not; pages_.size(): none.
  [[nodiscard]] std::size_t find(PageIndex page) const noexcept;
  void clear(std::size_t place) noexcept;

  // By place: the page (0: free), and its copy. The places of a set share one line of the cache.
  ZeroedTable<std::uint64_t> pages_;
  ZeroedTable<KeptCopy> copies_;
  std::uint64_t size_ = 0, dropped_ = 0;
  std::uint64_t most_ = ~std::uint64_t{0};
  std::size_t swept_ = 0;  // where take_dropped() goes on
  bool drop_everything_ = false;
  std::uint32_t way_ = 0;       // which of a full set makes way
  std::uint32_t unchanged_;     // of the pages with a copy that left lately, in 65536ths
  std::uint32_t fetches_ = 0;
};

}  // namespace whimbrel
