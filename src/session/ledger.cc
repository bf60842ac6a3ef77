#include "session/ledger.h"

#include "base/check.h"

namespace whimbrel::session {

PageRange Ledger::take(PageCount pages, std::uint64_t align) noexcept {
  if (!pieces_.reserve(2)) return {};
  for (std::size_t i = 0; i < pieces_.size(); ++i) {
    const Piece free = pieces_[i];
    if (free.taken || free.range.count < pages) continue;
    const PageIndex first((free.range.first.raw() + align - 1) & ~(align - 1));
    const PageRange range{first, pages};
    if (!free.range.contains(range)) continue;
    const PageRange below = PageRange::between(free.range.first, range.first);
    const PageRange behind = PageRange::between(range.end(), free.range.end());
    pieces_[i] = {range, true, free.starts_arena && below.empty()};
    if (!behind.empty()) pieces_.insert(i + 1, {behind, false, false});
    if (!below.empty()) pieces_.insert(i, {below, false, free.starts_arena});
    ++taken_;
    allocated_ += pages;
    return range;
  }
  return {};
}

bool Ledger::add_arena(PageRange arena) noexcept {
  if (!pieces_.reserve(1) || !arenas_.reserve(1)) return false;
  pieces_.insert(pieces_.above(arena.first), {arena, false, true});
  arenas_.insert(arenas_.above(arena.first), {arena});
  return true;
}

PageRange Ledger::piece_at(PageIndex first) const noexcept {
  const std::size_t i = pieces_.above(first);
  return i < pieces_.size() && pieces_[i].taken && pieces_[i].range.first == first ? pieces_[i].range : PageRange{};
}

void Ledger::give(PageIndex first) noexcept {
  std::size_t i = pieces_.above(first);
  CHECK(i < pieces_.size() && pieces_[i].taken && pieces_[i].range.first == first, "freeing what is not allocated");
  --taken_;
  allocated_ -= pieces_[i].range.count;
  pieces_[i].taken = false;
  if (i + 1 < pieces_.size() && !pieces_[i + 1].taken && !pieces_[i + 1].starts_arena) {
    pieces_[i].range.count += pieces_[i + 1].range.count;
    pieces_.erase(i + 1);
  }
  if (i > 0 && !pieces_[i].starts_arena && !pieces_[i - 1].taken) {
    pieces_[i - 1].range.count += pieces_[i].range.count;
    pieces_.erase(i);
  }
}

bool Ledger::add_adopted(PageRange range) noexcept {
  if (!adopted_.reserve(1)) return false;
  adopted_.insert(adopted_.above(range.first), {range});
  adopted_pages_ += range.count;
  return true;
}

bool Ledger::remove_adopted(PageRange range) noexcept {
  const std::size_t i = adopted_.above(range.first);
  if (i == adopted_.size() || adopted_[i].range != range) return false;
  adopted_.erase(i);
  adopted_pages_ -= range.count;
  return true;
}

bool Ledger::overlaps_known(PageRange range) const noexcept {
  const std::size_t a = adopted_.above(range.first);
  const std::size_t b = arenas_.above(range.first);
  return (a < adopted_.size() && adopted_[a].range.overlaps(range)) ||
         (b < arenas_.size() && arenas_[b].range.overlaps(range));
}

PageRange Ledger::any_adopted() const noexcept { return adopted_.size() == 0 ? PageRange{} : adopted_[0].range; }

bool Ledger::owns(PageRange range) const noexcept {
  const std::size_t p = pieces_.above(range.first);
  if (p < pieces_.size() && pieces_[p].taken && pieces_[p].range.contains(range)) return true;
  const std::size_t a = adopted_.above(range.first);
  return a < adopted_.size() && adopted_[a].range.contains(range);
}

bool Ledger::add_pin(PageRange range) noexcept {
  if (!pins_.reserve(1)) return false;
  pins_.insert(pins_.size(), {range});
  return true;
}

bool Ledger::remove_pin(PageRange range) noexcept {
  for (std::size_t i = 0; i < pins_.size(); ++i) {
    if (pins_[i].range != range) continue;
    pins_.erase(i);
    return true;
  }
  return false;
}

}  // namespace whimbrel::session
