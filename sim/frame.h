// Frame: one 4 KiB page of simulated RAM, with what decides whether it can move: who maps it, who pins it.
//
// Contents: nothing stored while all zero; else a buffer of its own, or, while it lies in a window of the engine, the
// window's memory at that place (the engine reaches runs of pages through one pointer).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>

#include "mm/address.h"

namespace whimbrel::sim {

// Physical memory. `limit` frames at most (0: no limit).
struct Ram {
  std::uint64_t limit = 0;
  std::uint64_t used = 0;
  std::uint64_t highest = 0;
};

// The allocation that 512 frames of a huge page share as long as it has not been split. Pins count for the whole.
struct LargeFolio {
  int pins = 0;
};

class Frame {
 public:
  explicit Frame(Ram& ram) : ram_(&ram) {
    if (++ram_->used > ram_->highest) ram_->highest = ram_->used;
  }
  ~Frame() { --ram_->used; }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

  void read(std::size_t offset, void* to, std::size_t bytes) const {
    if (const std::byte* from = data(); from != nullptr) {
      std::memcpy(to, from + offset, bytes);
    } else {
      std::memset(to, 0, bytes);
    }
  }
  void write(std::size_t offset, const void* from, std::size_t bytes) {
    if (data() == nullptr) own_ = std::make_unique<std::byte[]>(kPageSize);
    std::memcpy(data() + offset, from, bytes);
  }
  [[nodiscard]] bool is_zero() const {
    const std::byte* bytes = data();
    return bytes == nullptr || (bytes[0] == std::byte{0} && std::memcmp(bytes, bytes + 1, kPageSize - 1) == 0);
  }

  // Enters window memory, which must be all zero: contents live there from now on.
  void lend(std::byte* place) {
    if (own_ != nullptr) std::memcpy(place, own_.get(), kPageSize);
    own_.reset();
    lent_ = place;
  }
  // Leaves it again with its contents; the place is left all zero, so that a stale pointer reads zeros.
  void take_back() {
    if (lent_ == nullptr) return;
    std::byte* place = lent_;
    if (!is_zero()) {
      own_ = std::make_unique<std::byte[]>(kPageSize);
      std::memcpy(own_.get(), place, kPageSize);
      std::memset(place, 0, kPageSize);
    }
    lent_ = nullptr;
  }
  [[nodiscard]] bool is_lent() const { return lent_ != nullptr; }

  [[nodiscard]] int all_pins() const { return pins + (folio != nullptr ? folio->pins : 0); }

  int maps = 0;                       // slots that map it, in all processes
  int pins = 0;                       // DMA pins: MOVE refuses
  bool exclusive = true;              // belongs to one process; fork clears it, a write sets it again
  bool ksm = false;                   // merged
  bool lazy_free = false;             // MADV_FREE and not written since: may vanish
  std::shared_ptr<LargeFolio> folio;  // null: a base page of its own

 private:
  [[nodiscard]] std::byte* data() { return lent_ != nullptr ? lent_ : own_.get(); }
  [[nodiscard]] const std::byte* data() const { return lent_ != nullptr ? lent_ : own_.get(); }

  Ram* ram_;
  std::unique_ptr<std::byte[]> own_;
  std::byte* lent_ = nullptr;
};

using FramePtr = std::shared_ptr<Frame>;

}  // namespace whimbrel::sim
