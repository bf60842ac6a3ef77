// Collection: the walk that freezes the pages of a range and writes the src words (CTL, COL, CHP, HOL, SKP, SPL).
// Internal to the protocol; used by migrate_vma_setup only.
#pragma once

#include "migrate/migrate_vma.h"

namespace whimbrel {

class Collector {
 public:
  // `mapping` contains the whole range.
  Collector(AddressSpace& space, MigrateVma& args, const Mapping& mapping) noexcept
      : space_(space), args_(args), mapping_(mapping) {}
  // For the analysis, which does not see that both speak of the same lock: the caller holds it.
  void lock_is_held() const noexcept ASSERT_CAPABILITY(space_.mutex()) {}

  // Walks [args.start, args.end) unit by unit; sets npages, cpages and every visited src and dst word.
  void collect_locked() noexcept REQUIRES(space_.mutex());
  // The same where only pages of private devices are asked for and holes are of no interest: what the kernel has mapped
  // there makes no difference, so it is not asked. The way of every fault.
  void collect_away_locked() noexcept REQUIRES(space_.mutex());

 private:
  static constexpr std::size_t kMaxRuns = kPagesPerHuge;

  // Frames for the pages that are about to be stolen, taken and made ready together: a page at a time, that costs more
  // than the moves. Unused ones go back with the end of the part.
  class StagingBlock {
   public:
    explicit StagingBlock(AddressSpace& space) noexcept : space_(space) {}
    void lock_is_held() const noexcept ASSERT_CAPABILITY(space_.mutex()) {}
    // Frames for so many pages. Without memory, or when the kernel will not: nothing, and take_locked() finds none.
    void open_locked(PageCount pages) noexcept REQUIRES(space_.mutex());
    // The next `want` frames of the block; kNotFound when it has no such number left.
    [[nodiscard]] Result<PageIndex> take_locked(PageCount want) noexcept REQUIRES(space_.mutex());
    // Before anything that discards frames, waits, or reads messages.
    void close_locked() noexcept REQUIRES(space_.mutex());

   private:
    AddressSpace& space_;
    PageRange part_;   // watched for moves; empty: closed
    PageIndex next_;
  };

  // One unit's part of the range (never crosses a 2 MiB boundary).
  void collect_part_locked(PageRange part) noexcept REQUIRES(space_.mutex());
  // CHP: the slot is a 2 MiB one of ours. True: the part is fully recorded.
  bool collect_huge_slot_locked(PageRange part, PageEntry entry) noexcept REQUIRES(space_.mutex());
  // A RAM huge page taken whole; returns how many pages were recorded. Less than 512: the kernel has split it, go on with
  // base pages from there.
  [[nodiscard]] PageCount collect_huge_ram_locked(PageRange unit, std::uint32_t kind) noexcept REQUIRES(space_.mutex());
  // COL-02 for slots that are ours.
  void collect_device_slot_locked(PageIndex at, PageEntry entry) noexcept REQUIRES(space_.mutex());
  // The same for a page of a coherent device: it is taken back from the program into its frame.
  // As many as one MOVE can take, at least one page: those that lie next to each other on the device too.
  [[nodiscard]] PageCount collect_coherent_run_locked(PageRange run, std::uint32_t kind) noexcept REQUIRES(space_.mutex());
  void collect_coherent_slot_locked(PageIndex at, PageEntry entry, std::uint32_t kind) noexcept
      REQUIRES(space_.mutex());
  // Freezes a run of present RAM pages; returns how many of them have been recorded (moved or refused). Less than the
  // run's length: the picture changed, scan again from there.
  [[nodiscard]] PageCount steal_run_locked(PageRange run, std::uint32_t kind) noexcept REQUIRES(space_.mutex());
  // RAM pages of one mapping's private memory that a MOVE can take.
  [[nodiscard]] bool is_stealable(std::uint32_t kind) const noexcept {
    return wants(kSelectSystem) && (kind & PageRun::kPresent) != 0 && (kind & (PageRun::kFile | PageRun::kZero | PageRun::kShared)) == 0;
  }
  [[nodiscard]] PageCount handle_refusal_locked(PageIndex at, const Error& error) noexcept REQUIRES(space_.mutex());
  // Nothing from `at` on is taken: the rest of `part`, and what follows, is recorded as not migratable.
  void end(PageRange part, PageIndex at) noexcept;
  // Messages were applied in between: is the rest of the range still the mapping we were asked for? Watches it again.
  [[nodiscard]] bool still_valid_locked(PageRange rest) noexcept REQUIRES(space_.mutex());

  [[nodiscard]] bool selected(Pfn pfn) noexcept;
  [[nodiscard]] bool is_writable(std::uint32_t kind) const noexcept {
    return !args_.read_only && space_.is_writable(kind, mapping_);
  }
  [[nodiscard]] bool wants(std::uint64_t flag) const noexcept { return (args_.flags & flag) != 0; }
  void record(MigrateWord word) noexcept;
  void skip(PageCount count) noexcept;  // SKP-01
  void hole(PageCount count) noexcept;  // HOL-05

  AddressSpace& space_;
  MigrateVma& args_;
  Mapping mapping_;
  StagingBlock block_{space_};
  bool ended_ = false;  // the rest of the range is not what it was: nothing more is taken
  int event_rounds_ = 0;
  std::uint64_t busy_in_a_row_ = 0;
};

}  // namespace whimbrel
