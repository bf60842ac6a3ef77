// The kernel's page table of one simulated process: a slot per page, in blocks of 2 MiB.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <unordered_map>

#include "sim/frame.h"

namespace whimbrel::sim {

struct Slot {
  enum class Kind : std::uint8_t {
    kNone,
    kZeroPage,  // the shared zero page
    kFrame,     // present
    kSwapped,   // contents on swap: kept in `frame`, which is not RAM then
    kWriteProtectMarker,
    kPoison,
    kGuard,
  };
  Kind kind = Kind::kNone;
  bool write_protected = false;  // by userfaultfd; meaningful with kZeroPage and kFrame
  FramePtr frame;                // kFrame, kSwapped

  [[nodiscard]] bool is_empty() const { return kind == Kind::kNone; }
  [[nodiscard]] bool is_present() const { return kind == Kind::kFrame || kind == Kind::kZeroPage; }
  [[nodiscard]] bool is_marker() const {
    return kind == Kind::kWriteProtectMarker || kind == Kind::kPoison || kind == Kind::kGuard;
  }
};

class SimPageTable {
 public:
  struct Block {
    std::array<Slot, kPagesPerHuge> slots;
    std::size_t filled = 0;  // slots that are not empty
    bool huge = false;       // mapped by one 2 MiB entry: all 512 slots hold frames
  };

  ~SimPageTable();

  [[nodiscard]] const Slot& at(PageIndex page) const;
  [[nodiscard]] Block* block(PageIndex page);
  [[nodiscard]] bool is_huge(PageIndex page) const;
  [[nodiscard]] bool block_is_empty(PageIndex page) const;

  // Replaces the slot. A huge mapping around it must have been split. Keeps the frames' map counts.
  void set(PageIndex page, Slot slot);
  // Takes the slot's contents out and leaves it empty.
  [[nodiscard]] Slot take(PageIndex page);
  void clear(PageIndex page) { (void)take(page); }
  // The slot to change flags of; kind and frame must not be changed through it. Null when empty.
  [[nodiscard]] Slot* edit(PageIndex page);

  // All 512 slots hold frames: from now on one entry maps them.
  void make_huge(PageIndex base);
  void split_huge(PageIndex page);
  // Moves a whole huge unit into an empty block.
  void move_huge(PageIndex to, PageIndex from);

  // Every slot of the range that is not empty, in ascending order. `visit` may change the slot it is called for.
  void for_each(PageRange range, const std::function<void(PageIndex, const Slot&)>& visit) const;

  // Counts and huge mappings are what the slots say, and every filled slot is mapped. Stops the process when not.
  void check(const std::function<bool(PageIndex)>& is_mapped) const;

 private:
  std::unordered_map<std::uint64_t, std::unique_ptr<Block>> blocks_;  // by first page
};

}  // namespace whimbrel::sim
