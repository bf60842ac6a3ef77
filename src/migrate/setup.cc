// migrate_vma_setup and the unmap step (SET, UNM, VUN, CHK).
//
// The kernel isolates and pin-checks pages after having frozen them; here MOVE does all three at once: it refuses pinned
// and shared pages, and what it took nobody else can reach. So the unmap step has nothing left to undo.
#include "migrate/collect.h"
#include "migrate/migrate_vma.h"

namespace whimbrel {
namespace {

constexpr std::uint32_t kNeverMigrates = Mapping::kHugetlb | Mapping::kSpecial | Mapping::kKernelOwned;

Result<void> check_args(AddressSpace& space, const MigrateVma& args, std::int64_t pages) {
  if (pages <= 0 || args.src == nullptr || args.dst == nullptr) return fail(Errc::kInvalid, 0, "migrate_vma_setup");
  if (args.fault_page == Pfn()) return {};
  const PageMap* map = space.map_of(args.fault_page);
  if (map == nullptr || map->type() != MemoryType::kPrivate) return fail(Errc::kInvalid, 0, "fault page not private");
  const Page* head = space.page(space.head_of(args.fault_page));
  if (head == nullptr || !head->is_locked()) return fail(Errc::kInvalid, 0, "fault page not locked");
  return {};
}

}  // namespace

Result<void> migrate_vma_setup(AddressSpace& space, MigrateVma& args) noexcept {
  // SET-01: the count comes before the rounding, and truncates.
  const std::int64_t pages = static_cast<std::int64_t>(args.end.raw() - args.start.raw()) >> kPageShift;
  args.start = PageIndex::of(args.start).address();
  args.end = PageIndex::of(args.end).address();
  if (const Result<void> good = check_args(space, args, pages); !good) return good;
  const PageRange range = PageRange::between(PageIndex::of(args.start), PageIndex::of(args.end));
  args.cpages = args.npages = args.refused = 0;
  for (std::int64_t i = 0; i < pages; ++i) args.src[i] = MigrateWord();

  space.notify_start(NotifyEvent::kMigrate, range, args.pgmap_owner);
  Result<void> result{};
  if (args.skip_holes && args.flags == kSelectDevicePrivate) {
    // Slots say all there is to know: they lie in watched private memory, or a message about it is under way.
    // Whoever puts a page there is told of the latter in time.
    MutexLock hold(space.mutex());
    Collector collector(space, args, Mapping{});
    collector.lock_is_held();
    collector.collect_away_locked();
  } else {
    MutexLock hold(space.mutex());
    space.pump_locked();
    const Result<Mapping> mapping = space.mmu().mapping_at_or_above(range.first);
    // What engine threads use can lie in one mapping with memory of the program: such a part must not be watched.
    const PageRange home = !mapping                     ? PageRange{}
                           : args.watch_within.empty() ? mapping->range
                                                       : mapping->range.intersect(args.watch_within);
    if (!mapping || !home.contains(range) || mapping->has_any(kNeverMigrates)) {
      result = fail(Errc::kInvalid, 0, "migrate_vma_setup: not one ordinary mapping");
    } else if ((args.flags & kSelectSystem) != 0 && space.is_quarantined_locked(range)) {
      // The program is discarding here; nothing can be said about these pages for a moment. Legal: src stays 0.
      // Device pages here have been moved in since (mremap), and a toucher waits for them: they may come home.
      args.npages = range.count.raw();
      for (std::uint64_t i = 0; i < args.npages; ++i) args.dst[i] = MigrateWord();
    } else if (const Result<void> watched = mapping->is_private_anonymous() ? space.mmu().watch(home)
                                                                            : Result<void>{};
               !watched && watched.error().code == Errc::kExists) {
      result = fail(Errc::kInvalid, 0, "migrate_vma_setup: range belongs to another userfaultfd");  // UA-09
    } else if (!watched) {
      args.npages = range.count.raw();
      for (std::uint64_t i = 0; i < args.npages; ++i) args.dst[i] = MigrateWord();
      args.refused = args.npages;
      args.refusal = watched.error().code;
    } else {
      Collector collector(space, args, *mapping);
      collector.lock_is_held();
      collector.collect_locked();
      args.end = (range.first + PageCount(args.npages)).address();  // CTL-01
    }
  }
  space.notify_end(NotifyEvent::kMigrate, range, args.pgmap_owner);
  return result;
}

}  // namespace whimbrel
