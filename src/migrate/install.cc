#include "migrate/install.h"

#include "base/check.h"

namespace whimbrel {

bool Installer::is_ours_locked(Pfn source, PageIndex at) noexcept {
  const PageEntry entry = space_.table().get(at);
  return is_migrating(entry.state()) && entry.pfn() == source;
}

std::uint64_t Installer::run_locked(const MigrateWord* src, std::uint64_t at, std::uint64_t end, Pfn frame,
                                    bool stolen, Pfn tag) noexcept {
  const Page* first = space_.page(src[at].pfn());
  if (!first->is_mapped() || !is_ours_locked(src[at].pfn(), first->mapped_at())) return 1;  // dropped meanwhile
  const PageIndex home = first->mapped_at();
  std::uint64_t n = 1;
  while (at + n < end) {
    const Page* page = space_.page(src[at + n].pfn());
    if (!page->is_mapped() || page->mapped_at() != home + PageCount(n)) break;
    if (!is_ours_locked(src[at + n].pfn(), page->mapped_at())) break;
    ++n;
  }
  install_slots_locked(home, n, frame, stolen, tag);
  return n;
}

void Installer::clear_slot_locked(PageIndex at, Pfn tag) noexcept {
  const PageEntry entry = space_.table().get(at);
  space_.page(entry.pfn())->clear_mapping();
  if (tag == Pfn()) {
    space_.table().update(at, entry.after(PageEvent::kRestore));
    return;
  }
  space_.table().update(at, entry.without(PageEntry::kWaited).with_pfn(tag).after(PageEvent::kMapCoherent));
  space_.page(tag)->set_mapping(at);
  space_.page(tag)->get();
}

Progress Installer::put_locked(PageIndex first, std::uint64_t n, Pfn frame, bool by_move, bool protect) noexcept {
  // Whoever waited may run before the slot is cleared: he finds the page, and to change it he needs us to read a message.
  const Wake wake = read_only_ ? Wake::kNo : Wake::kYes;
  if (!by_move) {
    const Progress copied = space_.mmu().copy(first, space_.bytes(frame), PageCount(n), wake, protect);
    space_.forget_faults_locked({first, copied.done});
    return copied;
  }
  const Progress moved = space_.mmu().move(first, frame.frame(), PageCount(n), protect ? Wake::kNo : wake);
  if (protect && moved.done.raw() != 0) {
    (void)space_.protect_locked({first, moved.done});
    if (wake == Wake::kYes) space_.mmu().wake({first, moved.done});
  }
  space_.forget_faults_locked({first, moved.done});
  return moved;
}

bool Installer::must_protect_locked(PageIndex at) noexcept {
  if (!space_.config().track_protection) return false;
  const PageEntry entry = space_.table().get(at);
  if (entry.has(PageEntry::kWritable)) return false;
  if (!entry.has(PageEntry::kExclusiveMarker)) return true;
  if (read_only_) return false;
  // Ours alone, and only the mapping forbids writing: when the mapping is opened up again the page is writable at once.
  const Result<Mapping> mapping = space_.mmu().mapping_at_or_above(at);
  return mapping && mapping->range.contains(at) && mapping->has(Mapping::kWritable);
}

void Installer::install_slots_locked(PageIndex first, std::uint64_t n, Pfn frame, bool by_move, Pfn tag) noexcept {
  const auto tag_of = [&](std::uint64_t k) { return tag == Pfn() ? Pfn() : tag + PageCount(k); };
  // Sources by slot: messages applied in between may drop or re-key slots, so each is looked at again by its identity.
  Pfn sources[kPagesPerHuge];
  CHECK(n <= kPagesPerHuge);
  for (std::uint64_t i = 0; i < n; ++i) sources[i] = space_.table().get(first + PageCount(i)).pfn();
  std::uint64_t i = 0;
  int tries = 0;
  bool alone = false;  // the run was refused for something in it: its first page by itself
  while (i < n) {
    const Page* source = space_.page(sources[i]);
    if (!source->is_mapped() || !is_ours_locked(sources[i], source->mapped_at())) {
      ++i;  // dropped
      continue;
    }
    const PageIndex home = source->mapped_at();
    const bool protect = must_protect_locked(home);
    std::uint64_t run = 1;
    while (!alone && i + run < n) {
      const Page* next = space_.page(sources[i + run]);
      if (!next->is_mapped() || next->mapped_at() != home + PageCount(run)) break;
      if (space_.config().track_protection && must_protect_locked(home + PageCount(run)) != protect) break;
      ++run;
    }
    const Progress put = put_locked(home, run, frame + PageCount(i), by_move, protect);
    for (std::uint64_t k = 0; k < put.done.raw(); ++k) clear_slot_locked(home + PageCount(k), tag_of(i + k));
    if (put.done.raw() != 0) {
      space_.trace().add(TraceStep::kInstalled, {home, put.done}, (frame + PageCount(i)).raw());
      tries = 0;
      alone = false;
    }
    i += put.done.raw();
    if (!put.failed) continue;
    ++tries;
    if (put.error.code == Errc::kEventPending) {
      space_.stats().event_pending.fetch_add(1, std::memory_order_relaxed);
      space_.let_events_pass_locked(tries);
      continue;
    }
    alone = true;
    const PageIndex refused = home + put.done;
    if (settle_refused_locked(refused, frame + PageCount(i), put.error, tries, tag_of(i))) {
      space_.mmu().wake({refused, PageCount(1)});
      ++i;
      tries = 0;
      alone = false;
    }
  }
}

void Installer::note_replaced_locked(PageIndex at) noexcept {
  space_.stats().replaced.fetch_add(1, std::memory_order_relaxed);
  space_.trace().add(TraceStep::kReplaced, at);
}

bool Installer::settle_refused_locked(PageIndex at, Pfn frame, const Error& error, int tries, Pfn tag) noexcept {
  if (error.code == Errc::kExists) {
    // The slot was filled behind our back: the range was replaced, and the message about it is still to come (UA-10).
    note_replaced_locked(at);
    clear_slot_locked(at);
    return true;
  }
  if (error.code == Errc::kGone) {
    clear_slot_locked(at);
    return true;
  }
  // A window that crossed a border of mappings does nothing at all, and MOVE refuses read-only, shared or re-registered
  // homes: single COPYs into a range that is certainly watched settle all of these.
  const Result<Mapping> mapping = space_.mmu().mapping_at_or_above(at);
  if (!mapping || !mapping->range.contains(at)) {
    if (tries > 2) {
      note_replaced_locked(at);
      clear_slot_locked(at);
    }  // unmapped; its message has been or will be read
    space_.pump_locked();
    return tries > 2;
  }
  (void)space_.mmu().watch(mapping->range);
  const Progress copied =
      space_.mmu().copy(at, space_.bytes(frame), PageCount(1), Wake::kNo, must_protect_locked(at));
  if (!copied.failed || copied.error.code == Errc::kExists) {
    if (copied.failed) note_replaced_locked(at);
    clear_slot_locked(at, copied.failed ? Pfn() : tag);
    return true;
  }
  if (copied.error.code == Errc::kEventPending) {
    space_.let_events_pass_locked(tries);
    return false;
  }
  const PageEntry entry = space_.table().get(at);
  if (entry.state() == PageState::kMigratingHome && copied.error.code == Errc::kNoMemory) {
    // No RAM for it now: it stays on its device.
    space_.table().update(at, entry.after(PageEvent::kReturnToDevice));
    space_.page(space_.head_of(entry.pfn()))->get();  // the slot's reference again, one for each piece of a large folio
    return true;
  }
  if (tries > 1000) {
    // Not memory, not a message, and still mapped: nothing legal is left. Losing the page silently is not an option.
    CHECK(false, "a page cannot be put back into the program");
  }
  space_.clock().sleep_ns(50'000);
  return false;
}

void Installer::huge_locked(Pfn source, Pfn frame) noexcept {
  for (int tries = 0;; ++tries) {
    const Page* head = space_.page(source);
    const bool huge = head->is_mapped() && space_.table().get(head->mapped_at()).is_huge();
    if (!huge) {
      // Split or dropped meanwhile: every page that is still ours, wherever it is now.
      for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) {
        const Page* piece = space_.page(source + PageCount(i));
        if (!piece->is_mapped() || !is_ours_locked(source + PageCount(i), piece->mapped_at())) continue;
        install_slots_locked(piece->mapped_at(), 1, frame + PageCount(i), false);
      }
      return;
    }
    const PageIndex home = head->mapped_at();
    const PageRange unit{home, PageCount(kPagesPerHuge)};
    const Progress moved = put_locked(home, unit.count.raw(), frame, true, must_protect_locked(home));
    if (!moved.failed) {
      CHECK(space_.table().set_huge(home, PageEntry()).has_value());
      space_.page(source)->clear_mapping();
      space_.trace().add(TraceStep::kInstalled, unit, frame.raw());
      return;
    }
    if (moved.error.code == Errc::kEventPending && moved.done.raw() == 0 && tries < 1000) {
      space_.let_events_pass_locked(tries);
      continue;
    }
    // Page by page: what has moved is in place, the rest is copied.
    CHECK(space_.split_slot_locked(home).has_value(), "no memory to split a huge slot");
    for (std::uint64_t i = 0; i < moved.done.raw(); ++i) clear_slot_locked(home + PageCount(i));
  }
}

}  // namespace whimbrel
