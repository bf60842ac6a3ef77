// SimAddressSpace: what the kernel knows of one simulated process: mappings and page table, and how each system call
// changes them. Pure transitions: no threads, no messages, no waiting (that is SimMmu's and SimProgram's business).
#pragma once

#include <map>
#include <memory>
#include <optional>

#include "base/error.h"
#include "port/mmu.h"
#include "sim/sim_page_table.h"

namespace whimbrel::sim {

// A mapping (VMA). `attributes` are bits of Mapping::Flag, without kWatchedMissing.
struct Vma {
  PageRange range;
  std::uint32_t attributes = Mapping::kReadable | Mapping::kWritable;
  bool watched = false;                // registered for missing faults with the engine's descriptor
  bool watched_write_protect = false;  // and for write-protect faults
  bool watched_by_other = false;       // registered with somebody else's descriptor
  bool window = false;                 // the engine's own

  [[nodiscard]] bool has(std::uint32_t all) const { return (attributes & all) == all; }
  [[nodiscard]] bool has_any(std::uint32_t some) const { return (attributes & some) != 0; }
};

// What became of one access.
enum class Access : std::uint8_t {
  kDone,            // the page is there now and may be used
  kMissing,         // a watched slot is empty: the toucher waits
  kWriteProtected,  // a write to a page that userfaultfd protects: the toucher waits
  kSegv,
  kBus,
  kNoMemory,
};

class SimAddressSpace {
 public:
  struct Options {
    std::size_t max_mappings = 65'530;
    bool zero_page_on_read = true;  // a read of an unwatched hole maps the shared zero page, else a fresh frame
  };

  SimAddressSpace(Ram& ram, Ram& swap, Options options) : ram_(&ram), swap_(&swap), options_(options) {}

  // ---- mappings ----------------------------------------------------------------------------------------------
  [[nodiscard]] Vma* find(PageIndex page);
  [[nodiscard]] Vma* find_at_or_above(PageIndex page);
  [[nodiscard]] bool is_free(PageRange range);
  [[nodiscard]] bool is_covered(PageRange range);  // mapped without a gap
  [[nodiscard]] bool any_watched(PageRange range);
  [[nodiscard]] std::size_t mappings() const { return vmas_.size(); }

  // The range must be free. kNoMemory: too many mappings.
  [[nodiscard]] Result<void> map(const Vma& vma);
  void unmap(PageRange range);
  // Applies `change` to every mapping of the range, which is split at its edges. kNoMemory: too many mappings.
  [[nodiscard]] Result<void> change(PageRange range, const std::function<void(Vma&)>& change);
  // Moves slots and attributes; the destination must be free. keep_source: the old mapping stays, empty (DONTUNMAP).
  [[nodiscard]] Result<void> move_mapping(PageRange from, PageIndex to, bool keep_source);
  void grow(Vma& vma, PageCount to);

  // ---- pages -----------------------------------------------------------------------------------------------
  // Makes the page usable as an access by the program would. Frames come from Ram.
  [[nodiscard]] Access access(PageIndex page, bool write);
  [[nodiscard]] const Slot& slot(PageIndex page) const { return table_.at(page); }
  [[nodiscard]] SimPageTable& table() { return table_; }
  [[nodiscard]] bool is_huge(PageIndex page) const { return table_.is_huge(page); }
  // Without effect on anything (no fault): the bytes as the program would see them if the page is there.
  void peek(PageIndex page, std::size_t offset, void* to, std::size_t bytes) const;
  void poke(PageIndex page, std::size_t offset, const void* from, std::size_t bytes);

  [[nodiscard]] FramePtr new_frame();  // null: no RAM left
  void place(PageIndex page, Slot slot) { table_.set(page, std::move(slot)); }

  // MADV_DONTNEED: pages, write-protect markers and poison go; guards stay.
  void zap(PageRange range);
  // MADV_FREE: clean pages that may vanish; reclaim() makes those of the range vanish.
  void lazy_free(PageRange range);
  std::size_t reclaim_lazy_free(PageRange range);
  [[nodiscard]] Result<void> swap_out(PageIndex page);
  void install_guard(PageRange range);
  void remove_guard(PageRange range);
  // MADV_COLLAPSE, khugepaged: false when the unit does not qualify.
  bool collapse(PageIndex base);
  // KSM merges two pages of equal contents. False: they do not qualify.
  bool merge(PageIndex a, PageIndex b);
  // Gives up the 2 MiB mapping; the 512 frames stay one allocation.
  void split_mapping(PageIndex page) { table_.split_huge(page); }
  // Splits the allocation too: parts that are all zero become the zero page. The folio must not be pinned.
  void split_folio(PageIndex page);

  // The child's memory: everything shared copy-on-write, nothing watched. Pinned pages are copied at once.
  [[nodiscard]] std::unique_ptr<SimAddressSpace> fork();

  // Map counts, block counts and huge mappings are what the slots say. Stops the process when not.
  void check_invariants() const;

 private:
  [[nodiscard]] Access fill_hole(const Vma& vma, PageIndex page, bool write);
  [[nodiscard]] Access break_sharing(PageIndex page, Slot& slot);
  [[nodiscard]] Access bring_back_from_swap(PageIndex page);
  // Makes `page` the start of a mapping of its own. False: too many mappings.
  [[nodiscard]] bool split_at(PageIndex page);
  void split_edges(PageRange range);

  Ram* ram_;
  Ram* swap_;
  Options options_;
  std::map<PageIndex, Vma> vmas_;  // by first page
  SimPageTable table_;
};

}  // namespace whimbrel::sim
