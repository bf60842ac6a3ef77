// How contents get into a node's memory and out of it.
//
// The node's memory is a window of the engine's, and so are the frames that pages of the program are stolen into: whole
// pieces go from one to the other as they are, which costs the page tables' change and not the bytes. What is shared
// with a forked child does not move, and is copied.
#include <cstring>

#include "base/check.h"
#include "mirror/node.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

constexpr PageCount kUnit{kPagesPerHuge};

// Words from the first on that are base pages on the way, in one piece on both sides.
std::uint64_t piece(const MigrateWord* src, const MigrateWord* dst, std::uint64_t npages) {
  std::uint64_t n = 1;
  while (n < npages && src[n].valid() && dst[n].valid() && !src[n].compound() && !dst[n].compound() &&
         src[n].migrating() == src[0].migrating() && src[n].pfn() == src[0].pfn() + PageCount(n) &&
         dst[n].pfn() == dst[0].pfn() + PageCount(n)) {
    ++n;
  }
  return n;
}

}  // namespace

PageCount Node::move(PageIndex to, PageIndex from, PageCount count) noexcept {
  PageCount done;
  MutexLock hold(space_.mutex());
  for (int tries = 0; done < count && tries < 100;) {
    const Progress moved = space_.mmu().move(to + done, from + done, count - done, Wake::kNo);
    done += moved.done;
    if (!moved.failed) break;
    ++tries;
    if (moved.error.code == Errc::kEventPending) {
      space_.let_events_pass_locked(tries);
    } else if (moved.error.code != Errc::kAgain) {
      break;
    }
  }
  return done;
}

void Node::drop_moved_memory(Pfn first, PageCount count) noexcept {
  if (coherent()) return;  // its frames are empty when they are handed out
  for (Pfn at = first; at < first + count;) {
    const std::uint64_t unit = index(at) / kPagesPerHuge;
    const Pfn end = map_->first() + PageCount((unit + 1) * kPagesPerHuge);
    const PageCount part = (end < first + count ? end : first + count) - at;
    if (moved_memory_[unit].load(std::memory_order_acquire)) {
      CHECK(space_.mmu().discard({place_of(at), part}).has_value());
      if (part == kUnit) moved_memory_[unit].store(false, std::memory_order_release);
    }
    at = at + part;
  }
}

void Node::take_in(Pfn to, Pfn frame, PageCount count) noexcept {
  PageCount done;
  if (count < kWorthMoving) {
    drop_moved_memory(to, count);
  } else {
    if (!coherent()) CHECK(space_.mmu().discard({place_of(to), count}).has_value());  // what an earlier page has left
    for (std::uint64_t unit = index(to) / kPagesPerHuge; unit <= (index(to) + count.raw() - 1) / kPagesPerHuge;
         ++unit) {
      moved_memory_[unit].store(true, std::memory_order_release);
    }
    done = move(place_of(to), frame.frame(), count);
  }
  if (done < count) std::memcpy(bytes(to + done), space_.bytes(frame + done), (count - done).bytes());
}

void Node::take_in_zeros(Pfn to, PageCount count) noexcept {
  if (count < kWorthMoving) {
    drop_moved_memory(to, count);
    std::memset(bytes(to), 0, count.bytes());
    return;
  }
  if (!coherent()) CHECK(space_.mmu().discard({place_of(to), count}).has_value());
  // Memory of its own for every page: what comes home is an ordinary page, not the zero page.
  for (std::uint64_t i = 0; i < count.raw(); ++i) *reinterpret_cast<volatile char*>(bytes(to + PageCount(i))) = 0;
}

void Node::take_out(Pfn frame, Pfn from, PageCount count) noexcept {
  const bool unit = space_.page(frame)->order() != 0;
  PageCount done;
  if (Session::of(space_).is_forking()) {
    // The child looks for the contents on the node.
  } else if (unit) {
    done = move(frame.frame(), place_of(from), count);
  } else if (space_.pool(FrameUse::kStaging).contains(frame.frame())) {
    // A huge page whose pieces are moved one by one is taken apart, and its zeros would come home as the zero page.
    if (!in_huge_chunk(from)) done = move(frame.frame(), place_of(from), count);
  }
  if (done < count) std::memcpy(space_.bytes(frame + done), bytes(from + done), (count - done).bytes());
}

std::uint64_t Node::take_home(const MigrateWord* src, MigrateWord* dst, std::uint64_t npages) noexcept {
  if (!src[0].migrating() || !src[0].valid()) return 1;
  if (src[0].compound()) {
    const Result<Pfn> to = space_.alloc_huge_frame();
    if (!to) return 1;
    dst[0] = MigrateWord::of(*to).with(MigrateWord::kCompound);
    forget_mappings(src[0].pfn(), kPagesPerHuge);
    take_out(*to, src[0].pfn(), kUnit);
    return 1;
  }
  std::uint64_t n = 1;
  while (n < npages && src[n].migrating() && src[n].valid() && !src[n].compound() &&
         src[n].pfn() == src[0].pfn() + PageCount(n)) {
    ++n;
  }
  Result<Pfn> to = frames_for(PageCount(n));
  if (!to) to = space_.alloc_frames(PageCount(n = 1));
  if (!to) return 1;
  for (std::uint64_t i = 0; i < n; ++i) dst[i] = MigrateWord::of(*to + PageCount(i));
  for (std::uint64_t i = 0; i < n; ++i) forget_mappings(src[i].pfn(), 1);
  take_out(*to, src[0].pfn(), PageCount(n));
  return n;
}

void Node::undo_take_in(const MigrateWord* src, const MigrateWord* dst, std::uint64_t npages) noexcept {
  for (std::uint64_t i = 0; i < npages; ++i) {
    if (!src[i].valid() || src[i].migrating() || !dst[i].valid()) continue;
    const std::uint64_t n = src[i].compound() ? kPagesPerHuge : piece(src + i, dst + i, npages - i);
    const PageCount done = move(src[i].pfn().frame(), place_of(dst[i].pfn()), PageCount(n));
    for (std::uint64_t k = done.raw(); k < n; ++k) {
      std::memcpy(space_.bytes(src[i].pfn() + PageCount(k)), bytes(dst[i].pfn() + PageCount(k)), kPageSize);
    }
    if (!src[i].compound()) i += n - 1;
  }
}

void Node::undo_take_out(const MigrateWord* src, const MigrateWord* dst, std::uint64_t npages) noexcept {
  for (std::uint64_t i = 0; i < npages; ++i) {
    if (!src[i].valid() || src[i].migrating() || !dst[i].valid()) continue;
    const std::uint64_t n = dst[i].compound() ? kPagesPerHuge : piece(src + i, dst + i, npages - i);
    take_in(src[i].pfn(), dst[i].pfn(), PageCount(n));
    if (!dst[i].compound()) i += n - 1;
  }
}

}  // namespace whimbrel::mirror
