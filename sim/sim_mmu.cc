#include "sim/sim_mmu.h"

#include <algorithm>
#include <cerrno>

#include "base/check.h"

namespace whimbrel::sim {
namespace {

constexpr PageIndex kFirstWindow{std::uint64_t{0x7000'0000'0000} >> kPageShift};

constexpr Errc kQueryErrors[] = {Errc::kNoMemory};
constexpr Errc kWatchErrors[] = {Errc::kNoMemory, Errc::kExists, Errc::kInvalid};
constexpr Errc kProtectErrors[] = {Errc::kEventPending, Errc::kAgain};
constexpr Errc kPoisonErrors[] = {Errc::kEventPending, Errc::kNoMemory};
constexpr Errc kDiscardErrors[] = {Errc::kAgain};
constexpr Errc kPopulateErrors[] = {Errc::kAgain, Errc::kNoMemory};
constexpr Errc kReadErrors[] = {Errc::kFault};

// Bits that only the kernel's slow listing shows.
constexpr std::uint32_t kSlowFlags = Mapping::kLocked | Mapping::kSpecial | Mapping::kHugetlb | Mapping::kWipeOnFork |
                                     Mapping::kDontFork | Mapping::kHugeAdvised | Mapping::kNoHuge |
                                     Mapping::kWatchedMissing;

std::uint32_t kind_of(const Slot& slot, const Vma* vma, bool huge) {
  std::uint32_t kind = 0;
  switch (slot.kind) {
    case Slot::Kind::kNone:
      return 0;
    case Slot::Kind::kZeroPage:
      kind = PageRun::kPresent | PageRun::kZero | PageRun::kWritten;
      break;
    case Slot::Kind::kFrame:
      kind = PageRun::kPresent | PageRun::kWritten;
      break;
    case Slot::Kind::kSwapped:
    case Slot::Kind::kWriteProtectMarker:
    case Slot::Kind::kPoison:
      return PageRun::kSwapped;
    case Slot::Kind::kGuard:
      return PageRun::kSwapped | PageRun::kGuard;
  }
  if (huge) kind |= PageRun::kHuge;
  if (vma != nullptr && vma->has(Mapping::kFileBacked | Mapping::kShared)) kind |= PageRun::kFile;
  return kind;
}

}  // namespace

SimMmu::SimMmu(const Options& options, Failures* failures)
    : options_(options), failures_(failures), next_window_(kFirstWindow) {
  ram_.limit = options.ram_limit;
  space_ = std::make_unique<SimAddressSpace>(ram_, swap_, options.space);
}

SimMmu::~SimMmu() {
  while (!windows_.empty()) close_window(windows_.begin()->second.range);
}

void SimMmu::enter() {
  ++calls_;
  if (Scheduler* scheduler = Scheduler::current(); scheduler != nullptr) scheduler->point();
}

// Between a change of the page table and the caller's next instruction others may run as well.
void SimMmu::leave() {
  if (Scheduler* scheduler = Scheduler::current(); scheduler != nullptr) scheduler->point();
}

std::optional<Error> SimMmu::refusal(std::span<const Errc> possible, const char* where, bool page_operation) {
  if (exiting_) return Error{Errc::kGone, 0, where};
  std::optional<Errc> error;
  if (page_operation && userfault_.event_pending()) {
    error = Errc::kEventPending;
  } else if (failures_ != nullptr) {
    error = failures_->next(possible);
  }
  if (!error) return std::nullopt;
  Scheduler::note("%s refused: %s", where, errc_name(*error));
  // Whoever is told to try again must not be the only one who runs.
  if (Scheduler* scheduler = Scheduler::current(); scheduler != nullptr) scheduler->yield();
  return Error{*error, 0, where};
}

// ---- what is mapped, what is present ---------------------------------------------------------------------------

Result<Mapping> SimMmu::query(PageIndex page, bool detailed) {
  enter();
  if (const auto error = refusal(kQueryErrors, "sim mapping query", false)) return std::unexpected(*error);
  const Vma* vma = space_->find_at_or_above(page);
  if (vma == nullptr) return fail(Errc::kNotFound, 0, "sim mapping query");
  Mapping mapping{vma->range, vma->attributes, 0, vma->has_any(Mapping::kFileBacked) ? 1u : 0u};
  if (vma->watched || vma->watched_by_other) mapping.flags |= Mapping::kWatchedMissing;
  if (!detailed && !options_.fast_query_knows_flags) {
    mapping.flags = (mapping.flags & ~kSlowFlags) | Mapping::kFlagsUnknown;
  }
  return mapping;
}

Result<Mapping> SimMmu::mapping_at_or_above(PageIndex page) noexcept { return query(page, false); }

Result<Mapping> SimMmu::detailed_mapping_at_or_above(PageIndex page) noexcept { return query(page, true); }

Result<std::size_t> SimMmu::scan(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept {
  enter();
  if (const auto error = refusal(kQueryErrors, "sim scan", false)) return std::unexpected(*error);
  for (auto& [first, window] : windows_) {
    if (!window.range.overlaps(range)) continue;
    const PageRange seen = range.intersect(window.range);
    for (PageIndex page = seen.first; page < seen.end(); ++page) settle_window(page, true);
  }
  std::size_t count = 0;
  PageIndex stop = range.end();
  bool full = false;
  space_->table().for_each(range, [&](PageIndex page, const Slot& slot) {
    if (full) return;
    const std::uint32_t kind = kind_of(slot, space_->find(page), space_->is_huge(page));
    if (count > 0 && out[count - 1].range.end() == page && out[count - 1].kind == kind) {
      out[count - 1].range.count += PageCount(1);
    } else if (count < out.size()) {
      out[count++] = {{page, PageCount(1)}, kind};
    } else {
      full = true;
      stop = page;
    }
  });
  if (scanned != nullptr) *scanned = stop;
  return count;
}

// ---- watching --------------------------------------------------------------------------------------------------

Result<void> SimMmu::watch(PageRange range) noexcept {
  enter();
  Scheduler::note("watch %#llx+%llu", static_cast<unsigned long long>(range.first.raw()),
                  static_cast<unsigned long long>(range.count.raw()));
  if (const auto error = refusal(kWatchErrors, "sim watch", false)) return std::unexpected(*error);
  bool any = false;
  for (Vma* vma = space_->find_at_or_above(range.first); vma != nullptr && vma->range.first < range.end();
       vma = space_->find_at_or_above(vma->range.end())) {
    any = true;
    if (vma->watched_by_other) return fail(Errc::kExists, 0, "sim watch");
    const bool private_file = vma->has(Mapping::kFileBacked) && !vma->has(Mapping::kShared);
    if (private_file || vma->has_any(Mapping::kSpecial | Mapping::kKernelOwned))
      return fail(Errc::kInvalid, 0, "sim watch");
  }
  if (!any || range.empty()) return fail(Errc::kInvalid, 0, "sim watch");
  const bool protect = options_.abilities.write_protect;
  auto done = space_->change(range, [protect](Vma& vma) {
    vma.watched = true;
    vma.watched_write_protect = protect;
  });
  if (done) leave();
  return done;
}

Result<void> SimMmu::unwatch(PageRange range) noexcept {
  enter();
  if (exiting_) return fail(Errc::kGone, 0, "sim unwatch");
  auto done = space_->change(range, [](Vma& vma) { vma.watched = vma.watched_write_protect = false; });
  userfault_.wake(range);
  leave();
  return done;
}

Result<void> SimMmu::write_protect(PageRange range, bool protect, Wake wake) noexcept {
  enter();
  if (const auto error = refusal(kProtectErrors, "sim write_protect", true)) return std::unexpected(*error);
  for (PageIndex page = range.first; page < range.end();) {
    const Vma* vma = space_->find(page);
    if (vma == nullptr || !vma->watched_write_protect) return fail(Errc::kNotFound, 0, "sim write_protect");
    page = vma->range.end();
  }
  SimPageTable& table = space_->table();
  for (PageIndex page = range.first; page < range.end(); ++page) {
    const Slot& slot = table.at(page);
    if (slot.kind == Slot::Kind::kNone && protect) {
      table.set(page, Slot{Slot::Kind::kWriteProtectMarker, false, nullptr});
    } else if (slot.kind == Slot::Kind::kWriteProtectMarker && !protect) {
      table.clear(page);
    } else if (slot.is_present() || slot.kind == Slot::Kind::kSwapped) {
      table.edit(page)->write_protected = protect;
    }
  }
  if (!protect && wake == Wake::kYes) userfault_.wake(range);
  leave();
  return {};
}

Result<void> SimMmu::poison(PageRange range) noexcept {
  enter();
  if (const auto error = refusal(kPoisonErrors, "sim poison", true)) return std::unexpected(*error);
  if (const auto error = fill_preconditions(range, false, "sim poison")) return std::unexpected(*error);
  for (PageIndex page = range.first; page < range.end(); ++page) {
    auto filled = fill_slot(page, Slot{Slot::Kind::kPoison, false, nullptr}, "sim poison");
    if (!filled) return std::unexpected(filled.error());
  }
  userfault_.wake(range);
  leave();
  return {};
}

void SimMmu::wake(PageRange range) noexcept {
  enter();
  Scheduler::note("wake %#llx+%llu", static_cast<unsigned long long>(range.first.raw()),
                  static_cast<unsigned long long>(range.count.raw()));
  userfault_.wake(range);
  leave();
}

Result<void> SimMmu::raise_bus_error(std::uint32_t thread, VirtualAddress address) noexcept {
  enter();
  // A thread that does not wait any more gets the signal all the same; nothing of this world can see that.
  (void)userfault_.raise_bus_error(thread, address);
  leave();
  return {};
}

// ---- dropping and filling in -------------------------------------------------------------------------------------

void SimMmu::zap(PageRange range) {
  space_->zap(range);
  for (auto& [first, window] : windows_) {
    if (!window.range.overlaps(range)) continue;
    const PageRange gone = range.intersect(window.range);
    std::memset(window.memory + (gone.first - first).bytes(), 0, gone.count.bytes());
    for (PageIndex page = gone.first; page < gone.end(); ++page) window.asked[(page - first).raw()] = false;
  }
}

Result<void> SimMmu::discard(PageRange range) noexcept {
  enter();
  // The engine's own windows are unlocked, unwatched private memory: dropping their pages cannot fail.
  const std::span<const Errc> possible = window_of(range.first) != nullptr ? std::span<const Errc>() : kDiscardErrors;
  if (const auto error = refusal(possible, "sim discard", false)) return std::unexpected(*error);
  auto done = discard_pages(range, [this](PageRange part) { zap(part); });
  leave();
  return done;
}

Result<void> SimMmu::discard_pages(PageRange range, const std::function<void(PageRange)>& drop) {
  bool gap = false;
  for (PageIndex page = range.first; page < range.end();) {
    const Vma* vma = space_->find_at_or_above(page);
    if (vma == nullptr || vma->range.first >= range.end()) return fail(Errc::kNotFound, ENOMEM, "sim madvise");
    if (vma->range.first > page) gap = true;
    PageRange part = range.intersect(PageRange::between(std::max(page, vma->range.first), vma->range.end()));
    if (vma->has_any(Mapping::kLocked | Mapping::kSpecial)) return fail(Errc::kInvalid, EINVAL, "sim madvise");
    if (vma->watched) {
      const auto change = userfault_.begin_change();
      Message message;
      message.kind = Message::Kind::kRemove;
      message.range = part;
      userfault_.publish(change, message);
      userfault_.wait_until_read(change);
      leave();  // the reader goes on at once; the pages go some time later
      // The mapping is looked up again: what is there now loses its pages.
      vma = space_->find(part.first);
      if (vma == nullptr) return fail(Errc::kNotFound, ENOMEM, "sim madvise");
      part = part.intersect(vma->range);
    }
    drop(part);
    page = part.end();
  }
  if (gap) return fail(Errc::kNotFound, ENOMEM, "sim madvise");
  return {};
}

Result<void> SimMmu::discard_many(std::span<const PageRange> ranges) noexcept {
  for (const PageRange range : ranges) {
    if (auto done = discard(range); !done) return done;
  }
  return {};
}

Result<void> SimMmu::advise_huge(PageRange range) noexcept {
  enter();
  if (const auto error = refusal(kPopulateErrors, "sim advise_huge", false)) return std::unexpected(*error);
  const Result<void> advised = space_->change(range, [](Vma& vma) { vma.attributes |= Mapping::kHugeAdvised; });
  leave();
  return advised;
}

Result<void> SimMmu::populate(PageRange range, bool write) noexcept {
  enter();
  if (const auto error = refusal(kPopulateErrors, "sim populate", false)) return std::unexpected(*error);
  for (PageIndex page = range.first; page < range.end(); ++page) {
    for (;;) {
      const Access access = space_->access(page, write);
      if (access == Access::kDone) break;
      if (access == Access::kNoMemory) return fail(Errc::kNoMemory, ENOMEM, "sim populate");
      if (access == Access::kSegv && space_->find(page) == nullptr)
        return fail(Errc::kNotFound, ENOMEM, "sim populate");
      if (access == Access::kSegv || access == Access::kBus) return fail(Errc::kFault, EFAULT, "sim populate");
      Message message;
      message.write = write;
      message.write_protect = access == Access::kWriteProtected;
      message.address = page.address();
      userfault_.wait_until_woken(userfault_.park(message));
      leave();
    }
  }
  leave();
  return {};
}

Result<void> SimMmu::read_program_checked(PageIndex page, std::byte* to) {
  const Vma* vma = space_->find(page);
  if (vma == nullptr) return fail(Errc::kNotFound, EFAULT, "sim read_program");
  if (!vma->has(Mapping::kReadable)) return fail(Errc::kFault, EFAULT, "sim read_program");
  const Slot& slot = space_->slot(page);
  if (!slot.is_present() && slot.kind != Slot::Kind::kSwapped) return fail(Errc::kNotFound, EFAULT, "sim read_program");
  space_->peek(page, 0, to, kPageSize);
  return {};
}

Result<void> SimMmu::read_program(PageIndex page, std::byte* to) noexcept {
  enter();
  if (const auto error = refusal(kReadErrors, "sim read_program", false)) return std::unexpected(*error);
  return read_program_checked(page, to);
}

// ---- messages ----------------------------------------------------------------------------------------------------

bool SimMmu::wait_for_message(std::int64_t nanoseconds) noexcept {
  enter();
  Scheduler* scheduler = Scheduler::current();
  if (!userfault_.readable() && !interrupted_ && nanoseconds != 0 && scheduler != nullptr && scheduler->in_fiber()) {
    (void)scheduler->block(userfault_.reader_key(), nanoseconds, "a message");
  }
  interrupted_ = false;
  return userfault_.readable();
}

void SimMmu::interrupt() noexcept {
  interrupted_ = true;
  if (Scheduler* scheduler = Scheduler::current(); scheduler != nullptr)
    scheduler->wake_key(userfault_.reader_key(), 1);
}

std::size_t SimMmu::read_messages(std::span<Message> out) noexcept {
  enter();
  const std::size_t count = userfault_.read(out);
  for (std::size_t i = 0; i < count && Scheduler::traces(); ++i) {
    static const char* const kNames[] = {"fault", "remap", "remove", "unmap", "fork"};
    const PageIndex page = out[i].kind == Message::Kind::kFault ? PageIndex::of(out[i].address) : out[i].range.first;
    Scheduler::note("reads %s %#llx+%llu", kNames[static_cast<int>(out[i].kind)],
                    static_cast<unsigned long long>(page.raw()),
                    static_cast<unsigned long long>(out[i].range.count.raw()));
  }
  if (!options_.abilities.thread_id) {
    for (Message& message : out.first(count)) message.thread = 0;
  }
  if (count > 0) leave();  // whoever caused an event runs from here on
  return count;
}

// ---- the world's side ----------------------------------------------------------------------------------------------

void SimMmu::exit_space() {
  exiting_ = true;
  userfault_.wake({PageIndex(0), PageCount(std::uint64_t{1} << 40)});
}

void SimMmu::lose_descriptor() {
  (void)space_->change({PageIndex(0), PageCount(std::uint64_t{1} << 40)},
                       [](Vma& vma) { vma.watched = vma.watched_write_protect = false; });
  exit_space();
}

bool SimMmu::pin(PageIndex page) {
  const Slot& slot = space_->slot(page);
  if (slot.kind != Slot::Kind::kFrame) return false;
  ++(slot.frame->folio != nullptr ? slot.frame->folio->pins : slot.frame->pins);
  return true;
}

void SimMmu::unpin(PageIndex page) {
  const Slot& slot = space_->slot(page);
  CHECK(slot.kind == Slot::Kind::kFrame);
  int& pins = slot.frame->folio != nullptr ? slot.frame->folio->pins : slot.frame->pins;
  CHECK(pins > 0);
  --pins;
}

void SimMmu::reclaim(PageRange range) { (void)space_->reclaim_lazy_free(range); }

void SimMmu::lock_for_change() {
  while (page_operations_ > 0) (void)Scheduler::current()->block(&page_operations_, -1, "the address space's lock");
}

}  // namespace whimbrel::sim
