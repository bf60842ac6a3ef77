// SimMmu's page operations: move, copy, zero, and the windows they work with.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"
#include "sim/sim_mmu.h"

namespace whimbrel::sim {
namespace {

constexpr Errc kMoveErrors[] = {Errc::kBusy, Errc::kAgain, Errc::kEventPending, Errc::kNoMemory, Errc::kInvalid};
constexpr Errc kFillErrors[] = {Errc::kAgain, Errc::kEventPending, Errc::kNoMemory};

// Windows of closed worlds, all zero: a fresh mapping costs a fault per page.
std::multimap<std::uint64_t, std::byte*>& spare_windows() {
  static std::multimap<std::uint64_t, std::byte*> spare;
  return spare;
}

std::byte* take_window_memory(std::uint64_t bytes) {
  auto& spare = spare_windows();
  if (const auto it = spare.find(bytes); it != spare.end()) {
    std::byte* memory = it->second;
    spare.erase(it);
    return memory;
  }
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED, "no memory for a window");
  return static_cast<std::byte*>(memory);
}

void note_progress(const char* what, PageRange range, const Progress& progress) {
  if (!Scheduler::traces()) return;
  Scheduler::note("%s to %#llx+%llu: %llu done%s%s", what, static_cast<unsigned long long>(range.first.raw()),
                  static_cast<unsigned long long>(range.count.raw()),
                  static_cast<unsigned long long>(progress.done.raw()), progress.failed ? ", then " : "",
                  progress.failed ? errc_name(progress.error.code) : "");
}

bool is_zero(const std::byte* page) {
  return page[0] == std::byte{0} && std::memcmp(page, page + 1, kPageSize - 1) == 0;
}

}  // namespace

// Holds the address space's lock for reading: changes wait, faults do not.
class SimMmu::PageOperation {
 public:
  explicit PageOperation(SimMmu& mmu) : mmu_(mmu) { ++mmu_.page_operations_; }
  ~PageOperation() {
    if (--mmu_.page_operations_ > 0) return;
    if (Scheduler* scheduler = Scheduler::current(); scheduler != nullptr) {
      scheduler->wake_key(&mmu_.page_operations_, 1 << 30);
    }
  }
  PageOperation(const PageOperation&) = delete;
  PageOperation& operator=(const PageOperation&) = delete;

 private:
  SimMmu& mmu_;
};

// Runs `one` (which is told the first page and how many may follow, and returns how many it did) over the range.
Progress SimMmu::over_pages(PageRange destination, Wake wake, std::span<const Errc> possible, const char* where,
                            const std::function<Result<std::uint64_t>(std::uint64_t, std::uint64_t)>& one) {
  PageOperation operation(*this);
  const std::uint64_t count = destination.count.raw();
  std::optional<Errc> injected = failures_ != nullptr ? failures_->next(possible) : std::nullopt;
  const std::uint64_t stop = injected ? failures_->partial(count) : count;
  Progress progress;
  std::uint64_t done = 0;
  while (done < stop && !progress.failed) {
    const Result<std::uint64_t> step = one(done, stop - done);
    if (!step) {
      progress.failed = true;
      progress.error = step.error();
      break;
    }
    done += *step;
    if (options_.interleave_long_calls && done < stop && (done == 1 || done == count / 2)) leave();
  }
  if (injected && !progress.failed) {
    progress.failed = true;
    progress.error = Error{*injected, 0, where};
  }
  progress.done = PageCount(done);
  note_progress(where, destination, progress);
  if (wake == Wake::kYes && done > 0) userfault_.wake({destination.first, progress.done});
  return progress;
}

// ---- move ----------------------------------------------------------------------------------------------------------

std::optional<Error> SimMmu::move_preconditions(PageIndex to, PageIndex from, PageCount count) {
  const auto refuse = [](Errc code) { return std::optional<Error>(Error{code, 0, "sim move"}); };
  if (!options_.abilities.move) return refuse(Errc::kNotSupported);
  if (count == PageCount(0)) return refuse(Errc::kInvalid);
  const Vma* source = space_->find(from);
  const Vma* destination = space_->find(to);
  if (source == nullptr || destination == nullptr) return refuse(Errc::kNotFound);
  if (!source->range.contains({from, count}) || !destination->range.contains({to, count}))
    return refuse(Errc::kInvalid);
  constexpr std::uint32_t kUnmovable =
      Mapping::kShared | Mapping::kFileBacked | Mapping::kSpecial | Mapping::kHugetlb | Mapping::kKernelOwned;
  if (source->has_any(kUnmovable) || destination->has_any(kUnmovable)) return refuse(Errc::kInvalid);
  if (!destination->watched && !destination->window) return refuse(Errc::kInvalid);
  constexpr std::uint32_t kMustAgree =
      Mapping::kReadable | Mapping::kWritable | Mapping::kExecutable | Mapping::kLocked;
  const bool agree = ((source->attributes ^ destination->attributes) & kMustAgree) == 0;
  if (!agree || !source->has(Mapping::kWritable)) return refuse(Errc::kInvalid);
  return std::nullopt;
}

Progress SimMmu::move(PageIndex to, PageIndex from, PageCount count, Wake wake) noexcept {
  enter();
  if (const auto error = refusal({}, "sim move", true)) return {PageCount(0), true, *error};
  if (const auto error = move_preconditions(to, from, count)) return {PageCount(0), true, *error};
  const Progress progress =
      over_pages({to, count}, wake, kMoveErrors, "sim move", [&](std::uint64_t done, std::uint64_t left) {
        return move_next(to + PageCount(done), from + PageCount(done), left);
      });
  leave();
  return progress;
}

Result<std::uint64_t> SimMmu::move_next(PageIndex to, PageIndex from, std::uint64_t left) {
  settle_window(from, true);
  settle_window(to, false);
  if (space_->is_huge(from) && from.is_huge_aligned() && to.is_huge_aligned() && left >= kPagesPerHuge) {
    if (space_->table().block_is_empty(to)) return move_huge(to, from);
    space_->split_mapping(from);
  }
  if (!space_->slot(to).is_empty()) return fail(Errc::kExists, EEXIST, "sim move");
  const Slot& slot = space_->slot(from);
  if (slot.is_empty()) return fail(Errc::kNotFound, ENOENT, "sim move");
  if (slot.is_marker()) return fail(Errc::kFault, EFAULT, "sim move");
  if (slot.frame != nullptr) {
    if (slot.frame->all_pins() > 0) {
      space_->split_mapping(from);  // the refusal has done its damage
      return fail(Errc::kBusy, EBUSY, "sim move");
    }
    if (!slot.frame->exclusive || slot.frame->ksm) return fail(Errc::kBusy, EBUSY, "sim move");
    if (slot.frame->folio != nullptr) space_->split_folio(from);
  }
  Slot moved = space_->table().take(from);
  moved.write_protected = false;
  if (Window* window = window_of(from); window != nullptr) window->asked[(from - window->range.first).raw()] = false;
  put(to, std::move(moved));
  return 1;
}

Result<std::uint64_t> SimMmu::move_huge(PageIndex to, PageIndex from) {
  SimPageTable::Block* unit = space_->table().block(from);
  for (const Slot& slot : unit->slots) {
    if (slot.frame->all_pins() > 0) {
      space_->split_mapping(from);
      return fail(Errc::kBusy, EBUSY, "sim move huge");
    }
    if (!slot.frame->exclusive || slot.frame->ksm) return fail(Errc::kBusy, EBUSY, "sim move huge");
  }
  space_->table().move_huge(to, from);
  unit = space_->table().block(to);
  std::byte* memory = memory_of(to);
  for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) {
    Slot& slot = unit->slots[i];
    slot.write_protected = false;
    slot.frame->take_back();
    if (memory != nullptr) slot.frame->lend(memory + i * kPageSize);
  }
  return kPagesPerHuge;
}

void SimMmu::put(PageIndex page, Slot slot) {
  if (slot.frame != nullptr) {
    // Swapped contents as well: whoever reads the window finds them there.
    slot.frame->take_back();
    if (std::byte* memory = memory_of(page); memory != nullptr) slot.frame->lend(memory);
  }
  space_->place(page, std::move(slot));
}

// ---- copy and zero -----------------------------------------------------------------------------------------------

std::optional<Error> SimMmu::fill_preconditions(PageRange range, bool write_protected, const char* where) {
  const Vma* vma = space_->find(range.first);
  if (range.empty()) return Error{Errc::kInvalid, EINVAL, where};
  if (vma == nullptr || !vma->watched || !vma->range.contains(range)) return Error{Errc::kNotFound, ENOENT, where};
  if (write_protected && !vma->watched_write_protect) return Error{Errc::kInvalid, EINVAL, where};
  return std::nullopt;
}

Result<std::uint64_t> SimMmu::fill_slot(PageIndex page, Slot slot, const char* where) {
  const Slot& now = space_->slot(page);
  if (!now.is_empty() && now.kind != Slot::Kind::kWriteProtectMarker) return fail(Errc::kExists, EEXIST, where);
  space_->place(page, std::move(slot));
  return 1;
}

Progress SimMmu::copy(PageIndex to, const std::byte* from, PageCount count, Wake wake, bool write_protected) noexcept {
  enter();
  if (const auto error = refusal({}, "sim copy", true)) return {PageCount(0), true, *error};
  if (const auto error = fill_preconditions({to, count}, write_protected, "sim copy"))
    return {PageCount(0), true, *error};
  const Progress progress = over_pages(
      {to, count}, wake, kFillErrors, "sim copy", [&](std::uint64_t done, std::uint64_t) -> Result<std::uint64_t> {
        const PageIndex page = to + PageCount(done);
        FramePtr frame = space_->new_frame();
        if (frame == nullptr) return fail(Errc::kNoMemory, ENOMEM, "sim copy");
        if (!is_zero(from + done * kPageSize)) frame->write(0, from + done * kPageSize, kPageSize);
        return fill_slot(page, Slot{Slot::Kind::kFrame, write_protected, std::move(frame)}, "sim copy");
      });
  leave();
  return progress;
}

Progress SimMmu::zero(PageIndex to, PageCount count, Wake wake) noexcept {
  enter();
  if (const auto error = refusal({}, "sim zero", true)) return {PageCount(0), true, *error};
  if (const auto error = fill_preconditions({to, count}, false, "sim zero")) return {PageCount(0), true, *error};
  const Progress progress =
      over_pages({to, count}, wake, kFillErrors, "sim zero", [&](std::uint64_t done, std::uint64_t) {
        return fill_slot(to + PageCount(done), Slot{Slot::Kind::kZeroPage, false, nullptr}, "sim zero");
      });
  leave();
  return progress;
}

// ---- windows -------------------------------------------------------------------------------------------------------

Result<PageRange> SimMmu::open_window(PageCount count, WindowKind kind) noexcept {
  enter();
  constexpr Errc kErrors[] = {Errc::kNoMemory};
  if (const auto error = refusal(kErrors, "sim open_window", false)) return std::unexpected(*error);
  if (count == PageCount(0)) return fail(Errc::kInvalid, EINVAL, "sim open_window");
  const PageRange range{next_window_, count};
  Vma vma;
  vma.range = range;
  vma.window = true;
  vma.attributes |= kind == WindowKind::kHuge ? Mapping::kHugeAdvised : Mapping::kNoHuge;
  if (auto mapped = space_->map(vma); !mapped) return std::unexpected(mapped.error());
  // A gap of 2 MiB or more, so that no two windows are neighbours.
  next_window_ = (range.end() + PageCount(2 * kPagesPerHuge)).huge_base();
  windows_[range.first] = {range, kind, take_window_memory(count.bytes()), std::vector<bool>(count.raw())};
  return range;
}

void SimMmu::close_window(PageRange window) noexcept {
  enter();
  const auto it = windows_.find(window.first);
  CHECK(it != windows_.end() && it->second.range == window, "not a window");
  zap(window);
  space_->unmap(window);
  spare_windows().emplace(window.count.bytes(), it->second.memory);
  windows_.erase(it);
}

SimMmu::Window* SimMmu::window_of(PageIndex page) {
  auto it = windows_.upper_bound(page);
  if (it == windows_.begin()) return nullptr;
  --it;
  return it->second.range.contains(page) ? &it->second : nullptr;
}

std::byte* SimMmu::memory_of(PageIndex page) {
  Window* window = window_of(page);
  return window == nullptr ? nullptr : window->memory + (page - window->range.first).bytes();
}

std::byte* SimMmu::bytes(PageIndex window_page) noexcept {
  Window* window = window_of(window_page);
  CHECK(window != nullptr, "bytes() of a page that is in no window");
  window->asked[(window_page - window->range.first).raw()] = true;
  return memory_of(window_page);
}

// Notices that the engine has written to an empty page of a window, and gives it the frame the kernel would have given.
void SimMmu::settle_window(PageIndex page, bool is_source) {
  Window* window = window_of(page);
  if (window == nullptr) return;
  const PageRange unit = PageRange{page.huge_base(), PageCount(kPagesPerHuge)};
  const bool as_huge =
      window->kind == WindowKind::kHuge && window->range.contains(unit) && space_->table().block_is_empty(page);
  const auto is_touched = [&](PageIndex at) {
    return !is_zero(memory_of(at)) || (is_source && window->asked[(at - window->range.first).raw()]);
  };
  if (as_huge) {
    bool touched = false;
    for (PageIndex at = unit.first; at < unit.end() && !touched; ++at) touched = is_touched(at);
    if (!touched) return;
    for (PageIndex at = unit.first; at < unit.end(); ++at) {
      auto frame = std::make_shared<Frame>(ram_);
      frame->lend(memory_of(at));
      space_->place(at, Slot{Slot::Kind::kFrame, false, std::move(frame)});
    }
    space_->table().make_huge(unit.first);
    return;
  }
  const Slot& slot = space_->slot(page);
  const bool written_over_zero_page = slot.kind == Slot::Kind::kZeroPage && !is_zero(memory_of(page));
  if (!written_over_zero_page && !(slot.is_empty() && is_touched(page))) return;
  auto frame = std::make_shared<Frame>(ram_);
  frame->lend(memory_of(page));
  space_->place(page, Slot{Slot::Kind::kFrame, false, std::move(frame)});
}

}  // namespace whimbrel::sim
