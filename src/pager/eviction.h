// Eviction: one migration of program pages to the device.
//
// Order of the steps, and what undoes them: setup takes the pages out (finalize puts back whatever got no destination);
// pages that must not be away are marked to go back; the device reserves and stores (slots of failed stores are given
// back, their pages get no destination); pages + finalize make it so. A thread that touches a page in between waits for
// finalize, nothing else.
#pragma once

#include "migrate/migrate_vma.h"
#include "pager/pager_core.h"

namespace whimbrel {

class Eviction {
 public:
  // The lane is the caller's; the eviction gate has been entered.
  Eviction(PagerCore& core, Lane& lane) noexcept : core_(core), lane_(lane) {}

  using Outcome = EvictionOutcome;
  // `range`: at most Lane::kPages, inside one mapping.
  [[nodiscard]] Outcome run(PageRange range) noexcept {
    (void)take(range);
    return put_away();
  }
  // The two halves of run(), which two threads may do one after the other. False: there is nothing to store, but
  // put_away() must be called all the same.
  [[nodiscard]] bool take(PageRange range) noexcept;
  [[nodiscard]] Outcome put_away() noexcept;

 private:
  [[nodiscard]] bool collect(PageRange range) noexcept;
  void find_frames() noexcept;
  // Reads, looks at and stores entries from `from` on, a buffer full; returns where the next one starts.
  [[nodiscard]] std::size_t store_from(std::size_t from) noexcept;
  [[nodiscard]] std::size_t read_out(std::size_t from) noexcept;
  void spare_control_blocks(std::size_t from, std::size_t end) noexcept;
  void keep_home(PageRange home) noexcept;
  void spare_pinned(std::size_t from, std::size_t end) noexcept;
  // Marks the pages whose copy on the device still stands for them, and gives them that as their destination.
  void find_unchanged(std::size_t from, std::size_t end) noexcept;
  [[nodiscard]] bool is_unchanged(std::size_t i, const KeptCopy& copy) const noexcept;
  void reserve(std::size_t from, std::size_t end) noexcept;
  // Stores what has been reserved; where the device is full, once more without the copies it can do without.
  void store() noexcept;
  // How many entries from i on can be stored as one unit.
  [[nodiscard]] std::size_t unit_length(std::size_t i, std::size_t end) const noexcept;
  [[nodiscard]] std::byte* bytes(std::size_t i) const noexcept { return lane_.buffer + lane_.in_buffer[i] * kPageSize; }
  [[nodiscard]] bool is_storable(std::size_t i) const noexcept {
    return lane_.frames[i] != Pfn() && !lane_.keep[i] && !lane_.clean[i];
  }
  // After the pages step.
  [[nodiscard]] bool is_gone(std::size_t i) const noexcept {
    return lane_.src[i].valid() && lane_.src[i].migrating() && lane_.dst[i].valid();
  }
  void count_gone() noexcept;

  PagerCore& core_;
  Lane& lane_;
  MigrateVma args_{};
  PageIndex first_;
  std::int64_t begun_ = 0;  // where moves are logged
  Outcome outcome_{};
};

}  // namespace whimbrel
