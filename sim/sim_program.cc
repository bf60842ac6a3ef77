#include "sim/sim_program.h"

#include <algorithm>
#include <cstdio>
#include <optional>

#include "base/check.h"

namespace whimbrel::sim {
namespace {

void point() {
  if (Scheduler* scheduler = Scheduler::current(); scheduler != nullptr) scheduler->point();
}

constexpr std::uint32_t kProtection = Mapping::kReadable | Mapping::kWritable | Mapping::kExecutable;

}  // namespace

void SimProgram::report(const char* what, VirtualAddress address, const std::string& detail) {
  char text[160];
  std::snprintf(text, sizeof text, "%s at %#llx: %s", what, static_cast<unsigned long long>(address.raw()),
                detail.c_str());
  violations_.emplace_back(text);
}

Access SimProgram::touch(std::uint32_t thread, VirtualAddress address, bool write) {
  const PageIndex page = PageIndex::of(address);
  for (;;) {
    point();
    const Access access = mmu_.space().access(page, write);
    if (access != Access::kMissing && access != Access::kWriteProtected) {
      const bool legal = model_.allows(address, write);
      if (access == Access::kSegv && legal) report("SIGSEGV", address, "the mapping allows it");
      if (access == Access::kBus && !(legal && bus_is_legal_)) report("SIGBUS", address, "no contents were lost");
      if (access == Access::kDone && !legal) report("access", address, "the mapping forbids it");
      return access;
    }
    Message message;
    message.write = write;
    message.write_protect = access == Access::kWriteProtected;
    message.thread = thread;
    message.address = address;
    Scheduler::note("faults at %#llx", static_cast<unsigned long long>(address.raw()));
    const SimUserfault::Ticket ticket = mmu_.userfault().park(message);
    mmu_.userfault().wait_until_woken(ticket);
    if (!mmu_.userfault().ended_by_bus_error(ticket)) continue;
    if (!bus_is_legal_) report("SIGBUS", address, "no contents were lost");
    return Access::kBus;
  }
}

Access SimProgram::read(std::uint32_t thread, VirtualAddress address, std::uint64_t* word) {
  CHECK(address.raw() % sizeof *word == 0);
  *word = 0;
  const Access access = touch(thread, address, false);
  if (access != Access::kDone) return access;
  mmu_.space().peek(PageIndex::of(address), address.raw() & (kPageSize - 1), word, sizeof *word);
  Scheduler::note("read %#llx: %llu", static_cast<unsigned long long>(address.raw()),
                  static_cast<unsigned long long>(*word));
  const std::string wrong = model_.check_read(address, *word);
  if (!wrong.empty()) report("read", address, "got " + std::to_string(*word) + ", " + wrong);
  return access;
}

Access SimProgram::write(std::uint32_t thread, VirtualAddress address, std::uint64_t word) {
  CHECK(address.raw() % sizeof word == 0);
  const Access access = touch(thread, address, true);
  if (access != Access::kDone) return access;
  mmu_.space().poke(PageIndex::of(address), address.raw() & (kPageSize - 1), &word, sizeof word);
  Scheduler::note("wrote %#llx: %llu", static_cast<unsigned long long>(address.raw()),
                  static_cast<unsigned long long>(word));
  if (model_.allows(address, true)) model_.write(address, word);
  return access;
}

void SimProgram::begin_change(PageRange range) {
  point();
  for (;;) {
    mmu_.lock_for_change();
    const auto overlaps = [range](PageRange moving) { return moving.overlaps(range); };
    if (std::none_of(moving_.begin(), moving_.end(), overlaps)) return;
    Scheduler::current()->yield();
  }
}

void SimProgram::publish_and_wait(SimUserfault::Ticket change, const Message& event) {
  // The change is done and the lock is given up, but nobody can read about it yet.
  point();
  Scheduler::note("publishes its event");
  mmu_.userfault().publish(change, event);
  mmu_.userfault().wait_until_read(change);
}

void SimProgram::unmap_step(PageRange range) {
  Scheduler::note("unmaps %#llx+%llu", static_cast<unsigned long long>(range.first.raw()),
                  static_cast<unsigned long long>(range.count.raw()));
  mmu_.space().unmap(range);
  model_.unmap(range);
}

void SimProgram::mmap(PageRange range, std::uint32_t attributes) {
  begin_change(range);
  SimUserfault& userfault = mmu_.userfault();
  std::optional<SimUserfault::Ticket> change;
  if (mmu_.space().any_watched(range)) change = userfault.begin_change();
  unmap_step(range);
  Vma vma;
  vma.range = range;
  vma.attributes = attributes;
  CHECK(mmu_.space().map(vma).has_value());
  model_.map(range, vma.has(Mapping::kReadable), vma.has(Mapping::kWritable));
  if (!change) return;
  Message event;
  event.kind = Message::Kind::kUnmap;
  event.range = range;
  publish_and_wait(*change, event);
}

void SimProgram::munmap(PageRange range) {
  begin_change(range);
  std::optional<SimUserfault::Ticket> change;
  if (mmu_.space().any_watched(range)) change = mmu_.userfault().begin_change();
  unmap_step(range);
  if (!change) return;
  Message event;
  event.kind = Message::Kind::kUnmap;
  event.range = range;  // all of it, also what was never watched
  publish_and_wait(*change, event);
}

Result<void> SimProgram::mprotect(PageRange range, std::uint32_t protection) {
  begin_change(range);
  if (!mmu_.space().is_covered(range)) return fail(Errc::kNoMemory, 0, "sim mprotect");
  auto done = mmu_.space().change(
      range, [protection](Vma& vma) { vma.attributes = (vma.attributes & ~kProtection) | protection; });
  if (done) model_.protect(range, (protection & Mapping::kReadable) != 0, (protection & Mapping::kWritable) != 0);
  return done;
}

Result<void> SimProgram::mremap(PageRange from, PageIndex to, bool keep_source) {
  begin_change(from);
  SimAddressSpace& space = mmu_.space();
  SimUserfault& userfault = mmu_.userfault();
  const PageRange destination{to, from.count};
  const Vma* source = space.find(from.first);
  if (source == nullptr || !source->range.contains(from) || from.overlaps(destination)) {
    return fail(Errc::kInvalid, 0, "sim mremap");
  }
  const bool watched = source->watched;
  std::optional<SimUserfault::Ticket> unmapped_destination;
  std::optional<SimUserfault::Ticket> moved;
  std::optional<SimUserfault::Ticket> unmapped_source;
  if (space.any_watched(destination)) unmapped_destination = userfault.begin_change();
  if (watched) moved = userfault.begin_change();
  if (watched && !keep_source) unmapped_source = userfault.begin_change();
  moving_.push_back(from);
  unmap_step(destination);
  CHECK(space.move_mapping(from, to, keep_source).has_value());
  model_.move(from, to, keep_source);
  Scheduler::note("moved %#llx+%llu to %#llx", static_cast<unsigned long long>(from.first.raw()),
                  static_cast<unsigned long long>(from.count.raw()), static_cast<unsigned long long>(to.raw()));
  Message event;
  event.kind = Message::Kind::kUnmap;
  event.range = destination;
  if (unmapped_destination) publish_and_wait(*unmapped_destination, event);
  event.range = from;
  event.to = to;
  event.kind = Message::Kind::kRemap;
  if (moved) publish_and_wait(*moved, event);
  event.kind = Message::Kind::kUnmap;
  event.to = PageIndex();
  if (unmapped_source) publish_and_wait(*unmapped_source, event);
  moving_.erase(std::find(moving_.begin(), moving_.end(), from));
  return {};
}

Result<void> SimProgram::grow(PageIndex mapping, PageCount to) {
  begin_change({mapping, PageCount(1)});
  Vma* vma = mmu_.space().find(mapping);
  if (vma == nullptr || to <= vma->range.count) return fail(Errc::kInvalid, 0, "sim mremap grow");
  const PageRange added = PageRange::between(vma->range.end(), vma->range.first + to);
  if (!mmu_.space().is_free(added)) return fail(Errc::kNoMemory, 0, "sim mremap grow");
  mmu_.space().grow(*vma, to);  // no event: the new part is watched like the rest
  model_.map(added, vma->has(Mapping::kReadable), vma->has(Mapping::kWritable));
  return {};
}

Result<void> SimProgram::dontneed(PageRange range) {
  begin_change(range);
  model_.discard_begins(range);
  PageIndex done = range.first;
  auto result = mmu_.discard_pages(range, [&](PageRange part) {
    Scheduler::note("drops %#llx+%llu", static_cast<unsigned long long>(part.first.raw()),
                    static_cast<unsigned long long>(part.count.raw()));
    mmu_.zap(part);
    model_.discard_cancelled(PageRange::between(done, part.first));
    model_.discard_ends(part);
    done = part.end();
  });
  model_.discard_cancelled(PageRange::between(done, range.end()));
  return result;
}

Result<void> SimProgram::free_lazily(PageRange range) {
  begin_change(range);
  model_.discard_begins(range);
  PageIndex done = range.first;
  auto result = mmu_.discard_pages(range, [&](PageRange part) {
    mmu_.space().lazy_free(part);
    model_.discard_cancelled(PageRange::between(done, part.first));
    model_.free_lazily(part);
    done = part.end();
  });
  model_.discard_cancelled(PageRange::between(done, range.end()));
  return result;
}

Result<void> SimProgram::advise(PageRange range, std::uint32_t set, std::uint32_t clear) {
  begin_change(range);
  if (!mmu_.space().is_covered(range)) return fail(Errc::kNoMemory, 0, "sim madvise");
  return mmu_.space().change(range, [set, clear](Vma& vma) { vma.attributes = (vma.attributes & ~clear) | set; });
}

Result<void> SimProgram::mlock(std::uint32_t thread, PageRange range) {
  if (auto done = advise(range, Mapping::kLocked, 0); !done) return done;
  for (PageIndex page = range.first; page < range.end(); ++page) {
    Vma* vma = mmu_.space().find(page);
    if (vma == nullptr) return fail(Errc::kNoMemory, 0, "sim mlock");
    if (vma->has(Mapping::kReadable)) (void)touch(thread, page.address(), vma->has(Mapping::kWritable));
  }
  return {};
}

}  // namespace whimbrel::sim
