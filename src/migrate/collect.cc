#include "migrate/collect.h"

#include <algorithm>

#include "base/check.h"

namespace whimbrel {

void Collector::record(MigrateWord word) noexcept {
  args_.src[args_.npages] = word;
  args_.dst[args_.npages] = MigrateWord();
  ++args_.npages;
  if (word.migrating()) ++args_.cpages;
}

void Collector::skip(PageCount count) noexcept {
  for (std::uint64_t i = 0; i < count.raw(); ++i) record(MigrateWord());
}

void Collector::hole(PageCount count) noexcept {
  const bool report = mapping_.is_private_anonymous() && !args_.skip_holes;  // HOL-02
  for (std::uint64_t i = 0; i < count.raw(); ++i) record(MigrateWord(report ? MigrateWord::kMigrate : 0));
}

bool Collector::selected(Pfn pfn) noexcept {
  const PageMap* map = space_.map_of(pfn);
  if (map == nullptr || map->owner() != args_.pgmap_owner) return false;
  return wants(map->type() == MemoryType::kPrivate ? kSelectDevicePrivate : kSelectDeviceCoherent);
}

bool Collector::still_valid_locked(PageRange rest) noexcept {
  const Result<Mapping> now = space_.mmu().mapping_at_or_above(rest.first);
  if (!now || !now->range.contains(rest)) return false;
  mapping_ = *now;
  // What was unmapped may have been mapped anew, and nobody watches that: a page stolen there would read as zeros.
  if (now->is_private_anonymous() && !space_.mmu().watch(now->range)) return false;
  return !wants(kSelectSystem) || !space_.is_quarantined_locked(rest);
}

void Collector::end(PageRange part, PageIndex at) noexcept {
  ended_ = true;
  skip(part.end() - at);
}

void Collector::collect_locked() noexcept {
  PageIndex at = PageIndex::of(args_.start);
  const PageIndex end = PageIndex::of(args_.end);
  while (at < end) {
    const PageIndex unit_end = at.huge_base() + PageCount(kPagesPerHuge);
    const PageRange part = PageRange::between(at, std::min(unit_end, end));
    if (ended_) {
      skip(part.count);
    } else {
      collect_part_locked(part);  // CTL-02: unit by unit, never across
    }
    at = part.end();
  }
}

void Collector::collect_away_locked() noexcept {
  PageTable& table = space_.table();
  PageIndex at = PageIndex::of(args_.start);
  const PageIndex end = PageIndex::of(args_.end);
  while (at < end) {
    const PageRange part = PageRange::between(at, std::min(at.huge_base() + PageCount(kPagesPerHuge), end));
    if (const PageEntry entry = table.get(at.huge_base()); entry.is_huge() && collect_huge_slot_locked(part, entry)) {
      at = part.end();
      continue;
    }
    while (at < part.end()) {
      const PageIndex used = table.next_used(at, part.end());
      hole(used - at);
      at = used;
      if (at == part.end()) break;
      collect_device_slot_locked(at, table.get(at));
      ++at;
    }
  }
}

void Collector::StagingBlock::open_locked(PageCount pages) noexcept {
  const Result<PageIndex> frames = space_.pool(FrameUse::kStaging).take(pages);
  if (!frames) return;
  if (!space_.mmu().begin_moves_into({*frames, pages})) {
    space_.free_frames(Pfn::of_frame(*frames), pages);
    return;
  }
  part_ = {*frames, pages};
  next_ = *frames;
}

Result<PageIndex> Collector::StagingBlock::take_locked(PageCount want) noexcept {
  if (part_.empty() || part_.end() - next_ < want) return fail(Errc::kNotFound, 0, "staging block");
  const PageIndex first = next_;
  next_ = next_ + want;
  return first;
}

void Collector::StagingBlock::close_locked() noexcept {
  if (part_.empty()) return;
  space_.mmu().end_moves_into(part_);
  const PageRange left = PageRange::between(next_, part_.end());
  if (!left.empty()) space_.free_frames(Pfn::of_frame(left.first), left.count);
  part_ = {};
}

void Collector::collect_part_locked(PageRange part) noexcept {
  block_.lock_is_held();
  const PageIndex base = part.first.huge_base();
  const bool whole = part.count.raw() == kPagesPerHuge;
  PageTable& table = space_.table();
  if (const PageEntry entry = table.get(base); entry.is_huge()) {
    if (collect_huge_slot_locked(part, entry)) return;
  }
  if (!table.prepare(part)) {  // out of memory is never reported: entries just become 0 (SET-02)
    skip(part.count);
    return;
  }
  PageIndex at = part.first;
  bool tried_huge = false;
  while (at < part.end()) {
    const PageRange rest = PageRange::between(at, part.end());
    PageRun runs[kMaxRuns];
    const Result<std::size_t> found = space_.mmu().scan(rest, runs, nullptr);
    const std::size_t n = found ? *found : 0;
    if (whole && at == part.first && wants(kSelectCompound) && table.next_used(part.first, part.end()) == part.end()) {
      if (n == 0 && mapping_.is_private_anonymous()) {
        if (args_.skip_holes) return skip(part.count);
        record(MigrateWord(MigrateWord::kMigrate | MigrateWord::kCompound));  // HOL-03
        return skip(PageCount(kPagesPerHuge - 1));
      }
      const bool huge = n == 1 && runs[0].range == part && (runs[0].kind & PageRun::kHuge) != 0 &&
                        (runs[0].kind & (PageRun::kFile | PageRun::kZero | PageRun::kShared)) == 0;
      if (huge && wants(kSelectSystem) && !tried_huge) {
        tried_huge = true;
        at = at + collect_huge_ram_locked(part, runs[0].kind);
        // Refused, and messages may have been applied: as after any other refusal.
        if (at < part.end() && !still_valid_locked(PageRange::between(at, PageIndex::of(args_.end)))) return end(part, at);
        continue;  // finished, or on with what the kernel made of it
      }
    }
    // Base pages. A run that could not be taken to its end sends us back to the scan, from where it stopped.
    PageCount stealable;
    for (std::size_t i = 0; i < n; ++i) {
      if (is_stealable(runs[i].kind)) stealable += runs[i].range.count;
    }
    if (stealable.raw() > 1) block_.open_locked(stealable);
    std::size_t r = 0;
    bool rescan = false;
    while (at < part.end() && !rescan) {
      const PageEntry entry = table.get(at);
      while (r < n && runs[r].range.end() <= at) ++r;
      if (!entry.is_ram()) {
        if (entry.state() == PageState::kCoherent) {
          block_.close_locked();
          const bool present = r < n && runs[r].range.contains(at);
          const PageIndex last = present ? std::min(runs[r].range.end(), part.end()) : at + PageCount(1);
          at = at + collect_coherent_run_locked(PageRange::between(at, last), present ? runs[r].kind : 0);
        } else {
          collect_device_slot_locked(at, entry);
          ++at;
        }
        continue;
      }
      if (r == n || at < runs[r].range.first) {
        const PageIndex next_run = r == n ? part.end() : runs[r].range.first;
        const PageIndex next = std::min(next_run, table.next_used(at, part.end()));
        hole(next - at);
        at = next;
        continue;
      }
      const PageIndex run_end = std::min({runs[r].range.end(), part.end(), table.next_used(at, part.end())});
      const PageRange run = PageRange::between(at, run_end);
      const std::uint32_t kind = runs[r].kind;
      if (!wants(kSelectSystem) || (kind & PageRun::kPresent) == 0 ||
                 (kind & (PageRun::kFile | PageRun::kShared)) != 0) {
        skip(run.count);
        at = run.end();
      } else if ((kind & PageRun::kZero) != 0) {
        hole(run.count);
        at = run.end();
      } else {
        const PageCount done = steal_run_locked(run, kind);
        at = at + done;
        rescan = done < run.count;
      }
    }
    block_.close_locked();
    if (rescan && (++event_rounds_ > 64 || !still_valid_locked(PageRange::between(at, PageIndex::of(args_.end))))) {
      return end(part, at);
    }
  }
}

bool Collector::collect_huge_slot_locked(PageRange part, PageEntry entry) noexcept {
  const PageIndex base = part.first.huge_base();
  const Pfn head_pfn = entry.pfn();
  if (entry.state() != PageState::kDevice || !selected(head_pfn)) {  // CHP-03
    skip(part.count);
    return true;
  }
  Page* head = space_.page(head_pfn);
  const bool is_fault_page = args_.fault_page != Pfn() && space_.head_of(args_.fault_page) == head_pfn;
  if (!is_fault_page && !head->try_lock()) {  // CHP-05
    skip(part.count);
    return true;
  }
  if (part.count.raw() == kPagesPerHuge && wants(kSelectCompound)) {  // CHP-06
    CHECK(space_.table().set_huge(base, entry.after(PageEvent::kCollectHome)).has_value());
    const std::uint64_t write = entry.has(PageEntry::kWritable) ? MigrateWord::kWrite : 0;
    space_.trace().add(TraceStep::kCollectedHome, {base, PageCount(kPagesPerHuge)}, head_pfn.raw());
    record(MigrateWord::of(head_pfn).with(MigrateWord::kMigrate | MigrateWord::kCompound | write));
    skip(PageCount(kPagesPerHuge - 1));
    return true;
  }
  // CHP-08: split slot and folio, then walk base pages.
  if (!is_fault_page) head->get();
  bool split = space_.split_slot_locked(base).has_value();
  if (split) {
    const Pfn keep = is_fault_page ? args_.fault_page : head_pfn;
    split = space_.split_folio_locked(head_pfn, keep, false).has_value();
  }
  if (!is_fault_page) {
    head->unlock();
    space_.put_page(head_pfn);
  }
  if (!split) skip(part.count);
  return !split;
}

PageCount Collector::collect_huge_ram_locked(PageRange unit, std::uint32_t kind) noexcept {
  const Result<PageIndex> frame = space_.pool(FrameUse::kHuge).take_huge();
  if (!frame) return PageCount(0);
  const Pfn pfn = Pfn::of_frame(*frame);
  const std::uint64_t writable = is_writable(kind) ? PageEntry::kWritable : 0;
  const std::uint64_t write = writable != 0 ? MigrateWord::kWrite : 0;
  space_.page(pfn)->set_mapping(unit.first);
  const PageEntry frozen(PageState::kMigratingOut, pfn, writable | PageEntry::kExclusiveMarker);
  if (!space_.table().set_huge(unit.first, frozen)) {
    space_.page(pfn)->clear_mapping();
    space_.page(pfn)->unlock();
    space_.put_page(pfn);
    return PageCount(0);
  }
  const Progress moved = space_.mmu().move(*frame, unit.first, unit.count, Wake::kNo);
  space_.stats().collected.fetch_add(moved.done.raw(), std::memory_order_relaxed);
  if (!moved.failed) {
    space_.trace().add(TraceStep::kCollected, unit, pfn.raw());
    record(MigrateWord::of(pfn).with(MigrateWord::kMigrate | MigrateWord::kCompound | write));
    skip(PageCount(kPagesPerHuge - 1));
    return unit.count;
  }
  // Refused, or only a part moved: the kernel has split the huge page, so what we hold are base pages now.
  CHECK(space_.split_slot_locked(unit.first).has_value(), "no memory to split a huge slot");
  CHECK(space_.split_folio_locked(pfn, pfn, true).has_value());
  for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) {
    const PageIndex at = unit.first + PageCount(i);
    if (i < moved.done.raw()) {
      record(MigrateWord::of(pfn + PageCount(i)).with(MigrateWord::kMigrate | write));
    } else {
      space_.table().update(at, space_.table().get(at).after(PageEvent::kRestore));
    }
  }
  space_.free_frames(pfn + moved.done, unit.count - moved.done);
  return moved.done + handle_refusal_locked(unit.first + moved.done, moved.error);
}

void Collector::collect_device_slot_locked(PageIndex at, PageEntry entry) noexcept {
  const Pfn pfn = entry.pfn();
  if (entry.state() != PageState::kDevice || !selected(pfn)) return record(MigrateWord());
  const bool is_fault_page = args_.fault_page != Pfn() && args_.fault_page == pfn;
  const Pfn head_pfn = space_.head_of(pfn);
  Page* head = space_.page(head_pfn);
  if (head->order() != 0) {  // COL-03: base slots of a large folio
    const bool fault_folio = args_.fault_page != Pfn() && space_.head_of(args_.fault_page) == head_pfn;
    if (!fault_folio) {
      if (!head->try_lock()) return record(MigrateWord());
      head->get();
    }
    const bool split = space_.split_folio_locked(head_pfn, fault_folio ? args_.fault_page : pfn, false).has_value();
    if (!fault_folio) {
      Page* held = split ? space_.page(pfn) : head;
      held->unlock();
      space_.put_page(split ? pfn : head_pfn);
    }
    if (!split) return record(MigrateWord());
  }
  if (!is_fault_page && !space_.page(pfn)->try_lock()) return record(MigrateWord());  // COL-04
  space_.table().update(at, entry.after(PageEvent::kCollectHome));
  space_.trace().add(TraceStep::kCollectedHome, at, pfn.raw());
  const std::uint64_t write = entry.has(PageEntry::kWritable) ? MigrateWord::kWrite : 0;
  record(MigrateWord::of(pfn).with(MigrateWord::kMigrate | write));
}

PageCount Collector::collect_coherent_run_locked(PageRange run, std::uint32_t kind) noexcept {
  PageTable& table = space_.table();
  const Pfn first = table.get(run.first).pfn();
  const std::uint64_t writable = is_writable(kind) ? PageEntry::kWritable : 0;
  std::uint64_t n = 0;
  for (; selected(first) && n < run.count.raw(); ++n) {
    const PageEntry entry = table.get(run.first + PageCount(n));
    if (entry.state() != PageState::kCoherent || entry.pfn() != first + PageCount(n) || !selected(entry.pfn())) break;
    if (!space_.page(entry.pfn())->try_lock()) break;
    table.update(run.first + PageCount(n), entry.without(PageEntry::kWritable).with(writable).after(PageEvent::kCollectHome));
  }
  const PageIndex frame = n == 0 ? PageIndex() : space_.map_of(first)->frame_of(first);
  const Progress moved = n == 0 ? Progress{} : space_.mmu().move(frame, run.first, PageCount(n), Wake::kNo);
  const std::uint64_t done = n == 0 ? 0 : moved.done.raw();
  for (std::uint64_t i = 0; i < done; ++i) {
    record(MigrateWord::of(first + PageCount(i)).with(MigrateWord::kMigrate | (writable != 0 ? MigrateWord::kWrite : 0)));
  }
  for (std::uint64_t i = done; i < n; ++i) {
    const PageIndex at = run.first + PageCount(i);
    table.update(at, table.get(at).after(PageEvent::kMapCoherent));
    space_.page(first + PageCount(i))->unlock();
  }
  if (done != 0) return PageCount(done);
  collect_coherent_slot_locked(run.first, table.get(run.first), kind);
  return PageCount(1);
}

void Collector::collect_coherent_slot_locked(PageIndex at, PageEntry entry, std::uint32_t kind) noexcept {
  const Pfn pfn = entry.pfn();
  if (!selected(pfn) || !space_.page(pfn)->try_lock()) return record(MigrateWord());
  const std::uint64_t writable = is_writable(kind) ? PageEntry::kWritable : 0;
  if (!space_.take_coherent_locked(at, writable)) {
    space_.page(pfn)->unlock();
    ++args_.refused;
    return record(MigrateWord());
  }
  record(MigrateWord::of(pfn).with(MigrateWord::kMigrate | (writable != 0 ? MigrateWord::kWrite : 0)));
}

PageCount Collector::steal_run_locked(PageRange run, std::uint32_t kind) noexcept {
  block_.lock_is_held();
  if (args_.busy_limit != 0 && busy_in_a_row_ >= args_.busy_limit) {
    args_.refused += run.count.raw();
    skip(run.count);
    return run.count;
  }
  FramePool& pool = space_.pool(FrameUse::kStaging);
  PageCount want = run.count;
  Result<PageIndex> frame = block_.take_locked(want);
  if (!frame) frame = pool.take(want);
  while (!frame && want.raw() > 1) {
    want = PageCount(want.raw() / 2);
    frame = pool.take(want);
  }
  if (!frame) {
    skip(run.count);
    return run.count;
  }
  // Messages applied since the walk began may have given the block back.
  if (!space_.table().prepare({run.first, want})) {
    block_.close_locked();
    space_.free_frames(Pfn::of_frame(*frame), want);
    skip(run.count);
    return run.count;
  }
  const std::uint64_t writable = is_writable(kind) ? PageEntry::kWritable : 0;
  const auto freeze_slots = [&]() REQUIRES(space_.mutex()) {
    for (std::uint64_t i = 0; i < want.raw(); ++i) {
      const Pfn pfn = Pfn::of_frame(*frame + PageCount(i));
      space_.page(pfn)->set_mapping(run.first + PageCount(i));
      space_.table().update(run.first + PageCount(i),
                            PageEntry(PageState::kMigratingOut, pfn, writable | PageEntry::kExclusiveMarker));
    }
  };
#ifndef WHIMBREL_BREAK_STATE_BEFORE_MOVE
  // State before MOVE: a fault can arrive in the microsecond in which the page goes.
  freeze_slots();
  const Progress moved = space_.mmu().move(*frame, run.first, want, Wake::kNo);
#else
  // Wrong on purpose: the race test is built a second time with this, and has to find it.
  const Progress moved = space_.mmu().move(*frame, run.first, want, Wake::kNo);
  space_.mutex().unlock();
  space_.clock().sleep_ns(20'000);
  space_.mutex().lock();
  freeze_slots();
#endif
  const std::uint64_t write = writable != 0 ? MigrateWord::kWrite : 0;
  for (std::uint64_t i = 0; i < moved.done.raw(); ++i) {
    record(MigrateWord::of(Pfn::of_frame(*frame + PageCount(i))).with(MigrateWord::kMigrate | write));
  }
  space_.stats().collected.fetch_add(moved.done.raw(), std::memory_order_relaxed);
  if (moved.done.raw() != 0) busy_in_a_row_ = 0;
  if (moved.done.raw() != 0) space_.trace().add(TraceStep::kCollected, {run.first, moved.done}, frame->raw());
  if (moved.done < want) {
    for (std::uint64_t i = moved.done.raw(); i < want.raw(); ++i) {
      const PageIndex at = run.first + PageCount(i);
      space_.table().update(at, space_.table().get(at).after(PageEvent::kRestore));
    }
    block_.close_locked();
    space_.free_frames(Pfn::of_frame(*frame + moved.done), want - moved.done);
  }
  if (!moved.failed) return moved.done;
  return moved.done + handle_refusal_locked(run.first + moved.done, moved.error);
}

PageCount Collector::handle_refusal_locked(PageIndex at, const Error& error) noexcept {
  space_.trace().add(TraceStep::kRefused, at, static_cast<std::uint64_t>(error.code));
  switch (error.code) {
    case Errc::kEventPending:
      space_.stats().event_pending.fetch_add(1, std::memory_order_relaxed);
      space_.let_events_pass_locked(++event_rounds_);
      return PageCount(0);
    case Errc::kAgain:
      ++event_rounds_;
      return PageCount(0);
    case Errc::kNotFound:  // gone between scan and MOVE: look again
      ++event_rounds_;
      return PageCount(0);
    case Errc::kExists:
      // A mlockall() of the program has filled our free frames with zeros: they were dropped when the frames were given
      // back a moment ago; look again.
      if (++event_rounds_ < 32) return PageCount(0);
      break;
    case Errc::kBusy:
      space_.stats().busy.fetch_add(1, std::memory_order_relaxed);
      ++busy_in_a_row_;
      if (space_.config().break_sharing && event_rounds_ < 32) {
        // UA-06: a page shared by a fork moves once this process has a copy of its own. A pinned page stays busy.
        ++event_rounds_;
        // Not with the lock held: the fault that this makes may be ours to serve.
        space_.mutex().unlock();
        const bool copied = space_.mmu().populate({at, PageCount(1)}, true).has_value();
        space_.mutex().lock();
        if (copied) return PageCount(0);
      }
      break;
    default:
      break;
  }
  ++args_.refused;
  args_.refusal = error.code;
  record(MigrateWord());
  return PageCount(1);
}

}  // namespace whimbrel
