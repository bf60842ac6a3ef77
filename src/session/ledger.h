// Ledger: which memory belongs to a session: pieces it has allocated, in arenas of addresses, and ranges it has
// adopted.
//
// Bookkeeping only: who maps, manages and discards is the session. An arena is one managed mapping from which many
// pieces are cut, since the engine knows few ranges. Pieces lie side by side; free ones are joined.
//
// Program threads only, under the session's lock. Its memory comes from the program's heap, which this session does not
// move.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mm/address.h"

namespace whimbrel::session {

// A sorted array in memory of malloc(). Additions can fail, nothing else can.
template <class T>
class SortedArray {
 public:
  SortedArray() = default;
  ~SortedArray() { __builtin_free(items_); }
  SortedArray(const SortedArray&) = delete;
  SortedArray& operator=(const SortedArray&) = delete;

  [[nodiscard]] std::size_t size() const { return size_; }
  [[nodiscard]] T& operator[](std::size_t i) { return items_[i]; }
  [[nodiscard]] const T& operator[](std::size_t i) const { return items_[i]; }
  // Makes room for `more` insertions, which then cannot fail.
  [[nodiscard]] bool reserve(std::size_t more) {
    if (size_ + more <= room_) return true;
    const std::size_t room = (size_ + more) * 2;
    auto* const grown = static_cast<T*>(__builtin_realloc(static_cast<void*>(items_), room * sizeof(T)));
    if (grown == nullptr) return false;
    items_ = grown;
    room_ = room;
    return true;
  }
  void insert(std::size_t at, const T& item) {
    for (std::size_t i = size_++; i > at; --i) items_[i] = items_[i - 1];
    items_[at] = item;
  }
  void erase(std::size_t at) {
    --size_;
    for (std::size_t i = at; i < size_; ++i) items_[i] = items_[i + 1];
  }
  // The first item whose range ends above `page`.
  [[nodiscard]] std::size_t above(PageIndex page) const {
    std::size_t low = 0, high = size_;
    while (low < high) {
      const std::size_t middle = (low + high) / 2;
      if (items_[middle].range.end() <= page)
        low = middle + 1;
      else
        high = middle;
    }
    return low;
  }

 private:
  T* items_ = nullptr;
  std::size_t size_ = 0, room_ = 0;
};

class Ledger {
 public:
  // A free place of so many pages, now taken; empty: no arena has one. `align`: pages, a power of two.
  [[nodiscard]] PageRange take(PageCount pages, std::uint64_t align) noexcept;
  // Makes a new arena known, all of it free. False: no memory.
  [[nodiscard]] bool add_arena(PageRange arena) noexcept;
  // The piece that starts at `first`; empty: none does.
  [[nodiscard]] PageRange piece_at(PageIndex first) const noexcept;
  // Frees the piece that starts at `first`, which exists.
  void give(PageIndex first) noexcept;

  // False: no memory. The range overlaps none that is known.
  [[nodiscard]] bool add_adopted(PageRange range) noexcept;
  [[nodiscard]] bool remove_adopted(PageRange range) noexcept;
  [[nodiscard]] bool overlaps_known(PageRange range) const noexcept;
  // Some adopted range; empty: there is none.
  [[nodiscard]] PageRange any_adopted() const noexcept;

  // Whether the range lies within one piece or one adopted range.
  [[nodiscard]] bool owns(PageRange range) const noexcept;

  // Pins, each once for each time it was made.
  [[nodiscard]] bool add_pin(PageRange range) noexcept;
  [[nodiscard]] bool remove_pin(PageRange range) noexcept;
  // Calls `gone(range)` for each pin within `range` and forgets it.
  template <class Gone>
  void remove_pins_in(PageRange range, Gone gone) noexcept {
    for (std::size_t i = pins_.size(); i-- > 0;) {
      if (!range.contains(pins_[i].range)) continue;
      const PageRange pin = pins_[i].range;
      pins_.erase(i);
      gone(pin);
    }
  }

  template <class Visit>
  void for_each_arena(Visit visit) const noexcept {
    for (std::size_t i = 0; i < arenas_.size(); ++i) visit(arenas_[i].range);
  }
  [[nodiscard]] std::size_t arenas() const noexcept { return arenas_.size(); }
  [[nodiscard]] std::size_t pieces() const noexcept { return taken_; }
  [[nodiscard]] PageCount allocated() const noexcept { return allocated_; }
  [[nodiscard]] PageCount adopted() const noexcept { return adopted_pages_; }

 private:
  struct Piece {
    PageRange range;
    bool taken = false;
    bool starts_arena = false;  // never joined with what lies below
  };
  struct Plain {
    PageRange range;
  };

  SortedArray<Piece> pieces_;
  SortedArray<Plain> arenas_, adopted_, pins_;
  std::size_t taken_ = 0;
  PageCount allocated_, adopted_pages_;
};

}  // namespace whimbrel::session
