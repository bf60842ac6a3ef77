#include "pager/kept_copies.h"

namespace whimbrel {
namespace {

constexpr std::uint32_t kAll = 1u << 16;
constexpr std::uint32_t kWorth = kAll / 8;
constexpr std::uint32_t kSample = 16;
constexpr std::size_t kSweepStep = 4096;

}  // namespace

KeptCopies::KeptCopies(MemorySource& source, std::size_t pages) noexcept
    : pages_(source, (pages * 5 / 4 + kWays) / kWays * kWays), copies_(source, pages_.size()), unchanged_(kAll / 2) {}

bool KeptCopies::pays() noexcept { return unchanged_ >= kWorth || ++fetches_ % kSample == 0; }

void KeptCopies::judge(bool changed) noexcept {
  unchanged_ -= unchanged_ / 256;
  if (!changed) unchanged_ += kAll / 256;
}

std::size_t KeptCopies::find(PageIndex page) const noexcept {
  const std::size_t set = set_of(page);
  for (std::size_t i = set; i < set + kWays; ++i) {
    if ((pages_[i] & ~kDropped) == page.raw()) return i;
  }
  return pages_.size();
}

void KeptCopies::clear(std::size_t place) noexcept {
  if ((pages_[place] & kDropped) != 0) --dropped_;
  pages_[place] = 0;
  if (--size_ == 0) drop_everything_ = false;
}

Pfn KeptCopies::keep(PageIndex page, Pfn pfn, const PageDigest& digest) noexcept {
  if (drop_everything_) return pfn;
  const std::size_t set = set_of(page);
  std::size_t place = find(page);
  for (std::size_t i = set; place == pages_.size() && i < set + kWays; ++i) {
    if (pages_[i] == 0 && size_ < most_) place = i;
  }
  if (place == pages_.size()) place = set + way_++ % kWays;
  Pfn displaced;
  if (pages_[place] != 0) {
    displaced = copies_[place].pfn;
    clear(place);
  } else if (size_ >= most_) {
    return pfn;
  }
  pages_[place] = page.raw();
  copies_[place] = {pfn, digest};
  ++size_;
  return displaced;
}

KeptCopy KeptCopies::take(PageIndex page) noexcept {
  const std::size_t place = find(page);
  if (place == pages_.size() || pages_[place] != page.raw()) return {};
  const KeptCopy copy = copies_[place];
  clear(place);
  return copy;
}

void KeptCopies::drop(PageRange range) noexcept {
  if (size_ == 0) return;
  const auto mark = [this](std::size_t i) {
    if (pages_[i] == 0 || (pages_[i] & kDropped) != 0) return;
    pages_[i] |= kDropped;
    ++dropped_;
  };
  if (range.count.raw() >= pages_.size() / kWays) {
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      if (range.contains(PageIndex(pages_[i] & ~kDropped))) mark(i);
    }
    return;
  }
  for (PageIndex at = range.first; at < range.end(); ++at) {
    if (const std::size_t place = find(at); place != pages_.size()) mark(place);
  }
}

std::size_t KeptCopies::take_dropped(std::span<Pfn> out) noexcept {
  std::size_t n = 0;
  std::size_t looked = 0;
  while (n < out.size() && has_dropped() && (looked < kSweepStep || n == 0)) {
    ++looked;
    const std::size_t i = swept_;
    swept_ = swept_ + 1 == pages_.size() ? 0 : swept_ + 1;
    if (pages_[i] == 0 || (!drop_everything_ && (pages_[i] & kDropped) == 0)) continue;
    out[n++] = copies_[i].pfn;
    clear(i);
  }
  return n;
}

}  // namespace whimbrel
