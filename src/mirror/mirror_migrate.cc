// MIGRATE_TO_DEV and MIGRATE_TO_SYS (TD, TS).
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "mirror/mirror.h"
#include "mirror/protection_lift.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

// TD-02: at most 512 pages, never across the end of a mapping. 0 pages: nothing readable there.
PageRange next_block(Session& session, PageIndex at, PageIndex end) {
  const Result<Mapping> mapping = session.space().mmu().mapping_at_or_above(at);
  if (!mapping || !mapping->range.contains(at) || !mapping->has(Mapping::kReadable)) return {at, PageCount(0)};
  if (session.is_node_mapping(at)) return {at, PageCount(0)};
  const PageIndex limit = std::min({at + PageCount(kPagesPerHuge), end, mapping->range.end()});
  return PageRange::between(at, limit);
}

bool is_ordinary(AddressSpace& space, PageIndex at) {
  const Result<Mapping> mapping = space.mmu().mapping_at_or_above(at);
  return mapping && mapping->range.contains(at) && mapping->is_private_anonymous();
}

}  // namespace

int Mirror::migrate_to_device(Command& command, CallerBuffer& buffer) noexcept {
  const PageRange range{PageIndex(command.addr >> kPageShift), PageCount(command.npages)};
  for (PageIndex at = range.first; at < range.end();) {
    const PageRange block = next_block(session_, at, range.end());
    if (block.empty()) return -EINVAL;
    if (const int error = block_to_device(block); error != 0) return error;
    at = block.end();
  }
  return deliver(range, command, buffer);  // TD-06
}

int Mirror::block_to_device(PageRange block) noexcept {
  AddressSpace& space = session_.space();
  MigrateWord src[kPagesPerHuge], dst[kPagesPerHuge];
  MigrateVma args;
  args.start = block.first.address();
  args.end = block.end().address();
  args.src = src;
  args.dst = dst;
  args.pgmap_owner = &node_;
  args.flags = kSelectSystem | kSelectCompound;
  session_.dissolve_zero_units(block);
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
  AddressSpace& space = session_.space();
  const auto fill = [&](Pfn to, std::uint64_t i, std::uint64_t page_in_source, std::uint64_t pages) {
    std::byte* bytes = node_.bytes(to);
    if (args.src[i].valid()) {
      std::memcpy(bytes, space.bytes(args.src[i].pfn() + PageCount(page_in_source)), pages * kPageSize);
    } else {
      std::memset(bytes, 0, pages * kPageSize);
    }
  };
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    const MigrateWord source = args.src[i];
    if (!source.migrating()) continue;
    const std::uint64_t write = source.raw() & MigrateWord::kWrite;
    const bool fail_alloc = take_fail_alloc(flags_);
    if (!source.compound()) {
      const Result<Pfn> to = fail_alloc ? fail(Errc::kDeviceFull) : node_.alloc(0, &flags_);
      if (!to) continue;
      fill(*to, i, 0, 1);
      args.dst[i] = MigrateWord::of(*to).with(write);
      continue;
    }
    if (const Result<Pfn> to = fail_alloc ? fail(Errc::kDeviceFull) : node_.alloc(kHugeOrder, &flags_); to) {
      fill(*to, i, 0, kPagesPerHuge);
      args.dst[i] = MigrateWord::of(*to).with(write | MigrateWord::kCompound);
      continue;
    }
    for (std::uint64_t k = 0; k < kPagesPerHuge; ++k) {  // TD-04: the fallback
      const Result<Pfn> to = node_.alloc(0, &flags_);
      if (!to) break;
      fill(*to, i, k, 1);
      args.dst[i + k] = MigrateWord::of(*to).with(write);
    }
    i += kPagesPerHuge - 1;
  }
}

int Mirror::migrate_to_system(Command& command) noexcept {
  const PageRange range{PageIndex(command.addr >> kPageShift), PageCount(command.npages)};
  std::uint64_t cpages = 0;
  for (PageIndex at = range.first; at < range.end();) {
    const PageRange block = next_block(session_, at, range.end());
    if (block.empty()) return -EINVAL;
    if (const int error = block_to_system(block, &cpages); error != 0) return error;
    at = block.end();
  }
  command.cpages = cpages;
  return 0;
}

int Mirror::block_to_system(PageRange block, std::uint64_t* cpages) noexcept {
  AddressSpace& space = session_.space();
  MigrateWord src[kPagesPerHuge], dst[kPagesPerHuge];
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
  for (std::uint64_t i = 0; i < args.npages && !failed; ++i) {
    const MigrateWord source = src[i];
    if (!source.migrating() || !source.valid()) continue;
    const bool fail_alloc = take_fail_alloc(flags_);
    if (source.compound()) {
      if (const Result<Pfn> to = fail_alloc ? fail(Errc::kNoMemory) : space.alloc_huge_frame(); to) {
        std::memcpy(space.bytes(*to), node_.bytes(source.pfn()), kHugeSize);
        dst[i] = MigrateWord::of(*to).with(MigrateWord::kCompound);
        continue;
      }
      for (std::uint64_t k = 0; k < kPagesPerHuge && !failed; ++k) {
        const Result<Pfn> to = space.alloc_frames(PageCount(1));
        failed = !to.has_value();
        if (failed) break;
        std::memcpy(space.bytes(*to), node_.bytes(source.pfn() + PageCount(k)), kPageSize);
        dst[i + k] = MigrateWord::of(*to);
      }
      i += kPagesPerHuge - 1;
      continue;
    }
    const Result<Pfn> to = fail_alloc ? fail(Errc::kNoMemory) : space.alloc_frames(PageCount(1));
    failed = !to.has_value();
    if (failed) break;
    std::memcpy(space.bytes(*to), node_.bytes(source.pfn()), kPageSize);
    dst[i] = MigrateWord::of(*to);
  }
  if (failed) release();  // TS-02: the block is restored
  migrate_vma_pages(space, args);
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    if (!src[i].valid() || !src[i].migrating()) continue;
    ++*cpages;  // TS-03: a huge page counts one
    node_.tell_family(src[i].pfn(), src[i].pages());
    session_.forget_everywhere(node_, {block.first + PageCount(i), src[i].pages()});
  }
  const bool moves = std::any_of(dst, dst + args.npages, [](MigrateWord word) { return word.valid() && word.compound(); });
  const LockLift unlocked(space, moves ? block : PageRange{});
  const ProtectionLift lift(space, moves ? block : PageRange{});
  args.read_only = lift.lifted();
  migrate_vma_finalize(space, args);
  return failed ? -ENOMEM : 0;
}

}  // namespace whimbrel::mirror
