// Node: one of the test devices: its memory in chunks of 256 MiB, two lists of free pages, and its side of the
// migration protocol (ABI-02, ABI-14, ABI-15).
//
// Thread-safe. folio_free may be called with the address space's lock held and takes only the node's own.
#pragma once

#include <atomic>
#include <cstdint>

#include "migrate/migrate_vma.h"
#include "mirror/family.h"

namespace whimbrel::mirror {

class Node final : public PageMapOps {
 public:
  static constexpr std::uint64_t kChunkPages = 65536;

  // `private_chunks` bounds a private node's memory (addresses only); a coherent node has one chunk.
  [[nodiscard]] static Result<Node*> create(AddressSpace& space, int minor, std::uint64_t private_chunks) noexcept;

  [[nodiscard]] int minor() const noexcept { return minor_; }
  [[nodiscard]] bool coherent() const noexcept { return map_->type() == MemoryType::kCoherent; }
  [[nodiscard]] PageMap& map() noexcept { return *map_; }
  [[nodiscard]] std::uint64_t select_flag() const noexcept {
    return coherent() ? kSelectDeviceCoherent : kSelectDevicePrivate;
  }
  // The bytes of a page of this node that the program does not map.
  [[nodiscard]] std::byte* bytes(Pfn pfn) noexcept {
    return coherent() ? space_.bytes(pfn) : space_.mmu().bytes(memory_.first + (pfn - map_->first()));
  }

  // A fresh page or 2 MiB folio, locked, one reference, noted as migrated through the open with these flags (FL-03).
  // kDeviceFull.
  [[nodiscard]] Result<Pfn> alloc(unsigned order, OpenFlags* by) noexcept EXCLUDES(mutex_);
  // ---- contents. Many pages at once change hands by moving the memory itself, a few are copied: nobody can tell, since
  // a frame that was stolen from the program has only its engine left. `frame` and the pages after it are frames of the
  // engine that lie in one piece, as do the node's pages.
  void take_in(Pfn to, Pfn frame, PageCount count) noexcept;
  // `frame` from frames_for() or alloc_huge_frame().
  void take_out(Pfn frame, Pfn from, PageCount count) noexcept;
  // Pages of zeros.
  void take_in_zeros(Pfn to, PageCount count) noexcept;
  // Frames that contents of this many pages in one piece are best taken out into. kNoMemory.
  [[nodiscard]] Result<Pfn> frames_for(PageCount count) noexcept {
    return count >= kWorthMoving ? space_.alloc_fresh_frames(count) : space_.alloc_frames(count);
  }
  // From this many on a piece is moved. Below, the kernel flushes page by page, and copying is cheaper.
  static constexpr PageCount kWorthMoving{64};
  // Pages that did not migrate after all get back what take_in() or take_out() has taken from them. After the pages step.
  void undo_take_in(const MigrateWord* src, const MigrateWord* dst, std::uint64_t npages) noexcept;
  void undo_take_out(const MigrateWord* src, const MigrateWord* dst, std::uint64_t npages) noexcept;

  void reset_after_fork() noexcept { mutex_.reset_after_fork(); }
  void forget(const OpenFlags* closed) noexcept EXCLUDES(mutex_);

  // Brings everything home that can come (CL-01). With `destroy`, chunks go too: waits until all pages are free
  // (RL-01).
  void evict(bool destroy) noexcept;

  // The pages of this node in the range (at most 512, in one mapping), as base pages.
  void bring_home(PageRange range) noexcept;
  // A fork is about to share what is on the node; pages shared before keep the number of that fork.
  void note_shared(std::uint32_t generation) noexcept EXCLUDES(mutex_);
  // Pages of a folio are about to come home: the processes they are shared with bring theirs home too (FK-07).
  void tell_family(Pfn first, PageCount count) noexcept;
  // Another process has said so.
  void follow_home(const HomeRecord& record) noexcept;

  FaultResult migrate_to_ram(FaultContext& fault) noexcept override;
  void folio_free(Pfn head, unsigned order) noexcept override;
  void folio_split(Pfn head, Pfn piece) noexcept override;
  bool serves_inline() const noexcept override { return true; }

 private:
  Node(AddressSpace& space, int minor) noexcept : space_(space), minor_(minor) {}
  [[nodiscard]] bool add_chunk_locked(bool huge) noexcept REQUIRES(mutex_);
  // Where these pages of one folio are mapped; empty when they are not. A folio in pieces: the first page only.
  [[nodiscard]] PageRange mapped_range(Pfn first, PageCount count) noexcept;
  void drop_page_table(PageRange unit) noexcept;
  void evict_chunk(std::uint64_t chunk) noexcept;
  // Pages that lie next to each other here and in the program (at most 512) come home.
  void evict_run(Pfn first, std::uint64_t pages) noexcept;
  // Destinations in RAM, filled, for what src[0] begins: a unit, or base pages in one piece. Returns how many words.
  [[nodiscard]] std::uint64_t take_home(const MigrateWord* src, MigrateWord* dst, std::uint64_t npages) noexcept;
  // The opens forget where these pages are mapped.
  void forget_mappings(Pfn first, std::uint64_t pages) noexcept;
  [[nodiscard]] std::uint64_t run_length(Pfn first, Pfn end) noexcept;
  [[nodiscard]] std::uint64_t index(Pfn pfn) const noexcept { return (pfn - map_->first()).raw(); }
  // Where a page of this node that the program does not map has its bytes.
  [[nodiscard]] PageIndex place_of(Pfn pfn) const noexcept {
    return coherent() ? map_->frame_of(pfn) : memory_.first + (pfn - map_->first());
  }
  // Moves as far as that is possible; returns how many pages.
  [[nodiscard]] PageCount move(PageIndex to, PageIndex from, PageCount count) noexcept;
  // The program's memory, which others may still hold a reference to, lies at these pages: it must not be written over.
  void drop_moved_memory(Pfn first, PageCount count) noexcept;
  [[nodiscard]] bool in_huge_chunk(Pfn pfn) const noexcept {
    return (huge_chunks_.load(std::memory_order_acquire) >> (index(pfn) / kChunkPages) & 1) != 0;
  }

  struct Chunk {
    bool present = false;
    bool removing = false;
  };
  static constexpr std::uint32_t kNone = ~std::uint32_t{0};

  // What is free, lowest first: what goes to the device in one piece lies there in one piece, and comes home so.
  class FreeSet {
   public:
    [[nodiscard]] bool open(MemorySource& source, std::uint64_t count) noexcept;
    void add(std::uint64_t at) noexcept;
    [[nodiscard]] std::uint32_t take() noexcept;  // kNone: empty
    void clear() noexcept;

   private:
    SourceArray<std::uint64_t> words_;
    std::uint64_t lowest_ = 0;  // no word below it has a bit
    std::uint64_t count_ = 0;
  };

  AddressSpace& space_;
  const int minor_;
  PageMap* map_ = nullptr;
  PageRange memory_;  // private nodes: a window of the engine's

  Mutex mutex_;
  SourceArray<Chunk> chunks_ GUARDED_BY(mutex_);
  // The owner's bits of a folio are the number of the open that migrated it. Beside them there is nothing of a page here
  // but this, which costs no memory before the first fork. [page]: number of the fork that shared it, 0: none
  std::atomic<std::uint32_t>* shared_in_ = nullptr;
  // Bit of a chunk: it was made for huge folios, so that base pages in it may be pieces of huge pages.
  std::atomic<std::uint64_t> huge_chunks_{0};
  std::atomic<bool>* moved_memory_ = nullptr;        // [page / 512]: some of it came from the program by moving
  FreeSet free_base_ GUARDED_BY(mutex_);             // pages
  FreeSet free_huge_ GUARDED_BY(mutex_);             // units
};

}  // namespace whimbrel::mirror
