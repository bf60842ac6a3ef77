// ReleaseQueue: device pages that were freed while a fork was being prepared. The device takes nothing back then (the
// child's copy of it must be consistent), and whoever frees a page may be the fault thread, which must not wait for the
// forking thread: that one may be waiting for a page of its own.
//
// A list through the pages themselves: nothing maps a free page, so its reverse mapping has room for the link, and there
// is always room. Thread-safe without a lock; consistent in a forked child at any instant.
#pragma once

#include <atomic>
#include <cstdint>

#include "mm/page_map.h"

namespace whimbrel {

class ReleaseQueue {
 public:
  // `head` is a free folio of `map`.
  void push(PageMap& map, Pfn head) noexcept {
    Page* page = map.find(head);
    std::uint64_t first = first_.load(std::memory_order_relaxed);
    do {
      if (first == 0) page->clear_mapping();
      else page->set_mapping(PageIndex(first));
    } while (!first_.compare_exchange_weak(first, head.raw(), std::memory_order_release, std::memory_order_relaxed));
  }

  [[nodiscard]] bool empty() const noexcept { return first_.load(std::memory_order_relaxed) == 0; }

  // Takes everything out and calls release(head, order) for each folio.
  template <class Release>
  void drain(PageMap& map, Release release) noexcept {
    std::uint64_t at = first_.exchange(0, std::memory_order_acquire);
    while (at != 0) {
      Page* page = map.find(Pfn(at));
      const std::uint64_t next = page->is_mapped() ? page->mapped_at().raw() : 0;
      page->clear_mapping();
      release(Pfn(at), page->order());  // from here on the page can be in use again
      at = next;
    }
  }

 private:
  std::atomic<std::uint64_t> first_{0};  // frame number; 0: none, since device frames lie far above
};

}  // namespace whimbrel
