// MIGRATE_TO_DEV and MIGRATE_TO_SYS (TD, TS).
#include <algorithm>
#include <cerrno>

#include "mirror/mirror.h"
#include "mirror/protection_lift.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

// Blocks of whole units are worked on together, which nobody can tell from one after the other.
constexpr std::uint64_t kBatchPages = 8 * kPagesPerHuge;

// TD-02: at most 512 pages (or a batch of whole blocks that begin at units), never across the end of a mapping. 0 pages:
// nothing readable there.
PageRange next_block(Session& session, PageIndex at, PageIndex end, bool batch) {
  const Result<Mapping> mapping = session.space().mmu().mapping_at_or_above(at);
  if (!mapping || !mapping->range.contains(at) || !mapping->has(Mapping::kReadable)) return {at, PageCount(0)};
  if (session.is_node_mapping(at)) return {at, PageCount(0)};
  const PageIndex limit = std::min(end, mapping->range.end());
  std::uint64_t n = std::min((limit - at).raw(), batch && at.is_huge_aligned() ? kBatchPages : kPagesPerHuge);
  if (n > kPagesPerHuge) n = n / kPagesPerHuge * kPagesPerHuge;
  return {at, PageCount(n)};
}

bool is_ordinary(AddressSpace& space, PageIndex at) {
  const Result<Mapping> mapping = space.mmu().mapping_at_or_above(at);
  return mapping && mapping->range.contains(at) && mapping->is_private_anonymous();
}

}  // namespace

int Mirror::migrate_to_device(Command& command, CallerBuffer& buffer) noexcept {
  const PageRange range{PageIndex(command.addr >> kPageShift), PageCount(command.npages)};
  session_.file_copies().take(session_.space(), range);
  for (PageIndex at = range.first; at < range.end();) {
    const PageRange block = next_block(session_, at, range.end(), !flags_.fails_next());
    if (block.empty()) return -EINVAL;
    if (const int error = block_to_device(block); error != 0) return error;
    at = block.end();
  }
  return deliver(range, command, buffer);  // TD-06
}

int Mirror::block_to_device(PageRange block) noexcept {
  AddressSpace& space = session_.space();
  MigrateWord src[kBatchPages], dst[kBatchPages];
  MigrateVma args;
  args.start = block.first.address();
  args.end = block.end().address();
  args.src = src;
  args.dst = dst;
  args.pgmap_owner = &node_;
  args.flags = kSelectSystem | kSelectCompound;
  session_.dissolve_zero_units(block);
  session_.announce_file_pages(block);
  {
    const LockLift unlocked(space, block);
    const ProtectionLift lift(space, block);
    session_.revoke_split_exclusives(block);
    session_.unshare(block);
    args.read_only = lift.lifted();
    // Memory that the program watches itself: nothing moves, and no more is wrong with it.
    if (!migrate_vma_setup(space, args)) return is_ordinary(space, block.first) ? 0 : -EINVAL;
  }
  fill_destinations(args);
  // Zero pages are taken away here, and pages of coherent nodes put into the program until the end.
  const LockLift unlocked(space, block);
  ProtectionLift lift(space, block);
  args.read_only = lift.lifted();
  migrate_vma_pages(space, args);
  node_.undo_take_in(src, dst, args.npages);
  if (!node_.coherent()) lift.restore();
  {
    MutexLock hold(mutex_);
    if (table_.prepare(block)) {
      for (std::uint64_t i = 0; i < args.npages; ++i) {
        if (!src[i].migrating() || !dst[i].valid()) continue;
        const std::uint64_t n = dst[i].pages().raw();
        for (std::uint64_t k = 0; k < n; ++k) {
          table_.update(block.first + PageCount(i + k), PageEntry(PageState::kDevice, dst[i].pfn() + PageCount(k),
                                                                  dst[i].writable() ? kTagWrite : 0));
        }
      }
    }
  }
  session_.forget_elsewhere(*this, block);
  migrate_vma_finalize(space, args);
  if (args.read_only && !lift.lifted()) space.mmu().wake(block);
  return 0;
}

void Mirror::fill_destinations(MigrateVma& args) noexcept {
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    const MigrateWord source = args.src[i];
    if (!source.migrating()) continue;
    const std::uint64_t write = source.raw() & MigrateWord::kWrite;
    const bool fail_alloc = take_fail_alloc(flags_);
    if (!source.compound()) {
      const Result<Pfn> to = fail_alloc ? fail(Errc::kDeviceFull) : node_.alloc(0, &flags_);
      if (to) args.dst[i] = MigrateWord::of(*to).with(write);
      continue;
    }
    if (const Result<Pfn> to = fail_alloc ? fail(Errc::kDeviceFull) : node_.alloc(kHugeOrder, &flags_); to) {
      args.dst[i] = MigrateWord::of(*to).with(write | MigrateWord::kCompound);
      continue;
    }
    for (std::uint64_t k = 0; k < kPagesPerHuge; ++k) {  // TD-04: the fallback
      const Result<Pfn> to = node_.alloc(0, &flags_);
      if (!to) break;
      args.dst[i + k] = MigrateWord::of(*to).with(write);
    }
    i += kPagesPerHuge - 1;
  }
  for (std::uint64_t i = 0; i < args.npages;) i += take_in(args, i);
}

// Contents for the destination at `i` and those behind it that lie in one piece with it. Returns how many words.
std::uint64_t Mirror::take_in(const MigrateVma& args, std::uint64_t i) noexcept {
  if (!args.dst[i].valid()) return 1;
  const Pfn to = args.dst[i].pfn();
  const std::uint64_t unit = i / kPagesPerHuge * kPagesPerHuge;
  const bool of_unit = args.src[unit].compound();
  if (of_unit && !args.dst[i].compound()) {
    // Page by page, and copied: the pieces of a huge page that are moved would leave its zeros behind as zero pages.
    if (args.src[unit].valid()) node_.take_in(to, args.src[unit].pfn() + PageCount(i - unit), PageCount(1));
    else node_.take_in_zeros(to, PageCount(1));
    return 1;
  }
  std::uint64_t n = 1;
  if (!of_unit) {
    const bool valid = args.src[i].valid();
    while (i + n < args.npages && args.dst[i + n].valid() && !args.dst[i + n].compound() &&
           !args.src[i + n].compound() && args.dst[i + n].pfn() == to + PageCount(n) &&
           args.src[i + n].valid() == valid && (!valid || args.src[i + n].pfn() == args.src[i].pfn() + PageCount(n))) {
      ++n;
    }
  }
  if (of_unit) {  // units that lie one behind the other on both sides
    const bool valid = args.src[i].valid();
    for (n = kPagesPerHuge; i + n < args.npages; n += kPagesPerHuge) {
      const MigrateWord source = args.src[i + n], next = args.dst[i + n];
      if (!source.compound() || source.valid() != valid || !next.valid() || !next.compound() ||
          next.pfn() != to + PageCount(n) || (valid && source.pfn() != args.src[i].pfn() + PageCount(n))) {
        break;
      }
    }
  }
  const PageCount pages(n);
  if (args.src[i].valid()) node_.take_in(to, args.src[i].pfn(), pages);
  else node_.take_in_zeros(to, pages);
  return n;
}

int Mirror::migrate_to_system(Command& command) noexcept {
  const PageRange range{PageIndex(command.addr >> kPageShift), PageCount(command.npages)};
  std::uint64_t cpages = 0;
  for (PageIndex at = range.first; at < range.end();) {
    const PageRange block = next_block(session_, at, range.end(), !flags_.fails_next());
    if (block.empty()) return -EINVAL;
    if (const int error = block_to_system(block, &cpages); error != 0) return error;
    at = block.end();
  }
  command.cpages = cpages;
  return 0;
}

int Mirror::block_to_system(PageRange block, std::uint64_t* cpages) noexcept {
  AddressSpace& space = session_.space();
  MigrateWord src[kBatchPages], dst[kBatchPages];
  MigrateVma args;
  args.start = block.first.address();
  args.end = block.end().address();
  args.src = src;
  args.dst = dst;
  args.pgmap_owner = &node_;
  args.flags = node_.select_flag() | kSelectCompound;
  {
    const LockLift unlocked(space, node_.coherent() ? block : PageRange{});
    const ProtectionLift lift(space, node_.coherent() ? block : PageRange{});
    args.read_only = lift.lifted();
    if (!migrate_vma_setup(space, args)) return -EINVAL;
  }
  bool failed = false;
  const auto release = [&] {
    for (std::uint64_t i = 0; i < args.npages; ++i) {
      if (!dst[i].valid()) continue;
      space.page(dst[i].pfn())->unlock();
      space.put_page(dst[i].pfn());
      dst[i] = MigrateWord();
    }
  };
  for (std::uint64_t i = 0; i < args.npages && !failed;) {
    const MigrateWord source = src[i];
    if (!source.migrating() || !source.valid()) {
      ++i;
      continue;
    }
    const bool fail_alloc = take_fail_alloc(flags_);
    if (source.compound()) {
      if (const Result<Pfn> to = fail_alloc ? fail(Errc::kNoMemory) : space.alloc_huge_frame(); to) {
        dst[i] = MigrateWord::of(*to).with(MigrateWord::kCompound);
      } else {
        for (std::uint64_t k = 0; k < kPagesPerHuge && !failed; ++k) {
          const Result<Pfn> page = space.alloc_frames(PageCount(1));
          failed = !page.has_value();
          if (!failed) dst[i + k] = MigrateWord::of(*page);
        }
      }
      i += kPagesPerHuge;
      continue;
    }
    std::uint64_t n = 1;
    while (i + n < args.npages && src[i + n].migrating() && src[i + n].valid() && !src[i + n].compound() &&
           src[i + n].pfn() == source.pfn() + PageCount(n)) {
      ++n;
    }
    Result<Pfn> to = fail_alloc ? fail(Errc::kNoMemory) : node_.frames_for(PageCount(n));
    if (!to && !fail_alloc) to = space.alloc_frames(PageCount(n = 1));
    failed = !to.has_value();
    for (std::uint64_t k = 0; k < n && !failed; ++k) dst[i + k] = MigrateWord::of(*to + PageCount(k));
    i += n;
  }
  if (failed) release();  // TS-02: the block is restored
  for (std::uint64_t i = 0; i < args.npages;) i += take_out(args, i);
  migrate_vma_pages(space, args);
  node_.undo_take_out(src, dst, args.npages);
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    if (!src[i].valid() || !src[i].migrating()) continue;
    ++*cpages;  // TS-03: a huge page counts one
    node_.tell_family(src[i].pfn(), src[i].pages());
  }
  const bool moves = std::any_of(dst, dst + args.npages, [&](MigrateWord word) {
    return word.valid() && (word.compound() || space.pool(FrameUse::kStaging).contains(word.pfn().frame()));
  });
  const LockLift unlocked(space, moves ? block : PageRange{});
  const ProtectionLift lift(space, moves ? block : PageRange{});
  args.read_only = lift.lifted();
  migrate_vma_finalize(space, args);
  return failed ? -ENOMEM : 0;
}

// The way home of what take_in() has brought. No device may look at the pages any more when their contents go (CF-12).
std::uint64_t Mirror::take_out(const MigrateVma& args, std::uint64_t i) noexcept {
  if (!args.dst[i].valid()) return 1;
  const PageIndex home = PageIndex::of(args.start) + PageCount(i);
  const std::uint64_t unit = i / kPagesPerHuge * kPagesPerHuge;
  if (args.src[unit].compound()) {
    const bool whole = args.dst[i].compound();
    const PageCount pages(whole ? kPagesPerHuge : 1);
    session_.forget_everywhere(node_, {home, pages});
    node_.take_out(args.dst[i].pfn(), args.src[unit].pfn() + PageCount(i - unit), pages);
    return 1;
  }
  std::uint64_t n = 1;
  while (i + n < args.npages && args.dst[i + n].valid() && args.dst[i + n].pfn() == args.dst[i].pfn() + PageCount(n) &&
         args.src[i + n].pfn() == args.src[i].pfn() + PageCount(n)) {
    ++n;
  }
  session_.forget_everywhere(node_, {home, PageCount(n)});
  node_.take_out(args.dst[i].pfn(), args.src[i].pfn(), PageCount(n));
  return n;
}

}  // namespace whimbrel::mirror
