#include "sim/worlds/sim_driver.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"

namespace whimbrel::sim {
namespace {

constexpr std::uint32_t kUnit = kPagesPerHuge;

}  // namespace

SimDriver::SimDriver(AddressSpace& space, SimDevice& device, Choices& choices, std::uint64_t pages)
    : space_(space),
      device_(device),
      choices_(choices),
      map_(space.add_page_map(MemoryType::kPrivate, PageCount(pages), this, this).value()),
      pages_(pages) {}

Result<Pfn> SimDriver::allocate(unsigned order) {
  if (short_of_something()) return fail(Errc::kDeviceFull, 0, "sim driver");
  const std::uint32_t count = 1u << order;
  const Result<DeviceSlot> slot = device_.reserve(count);
  if (!slot) return std::unexpected(slot.error());
  for (std::uint64_t tries = 0; tries < pages_ / count; ++tries) {
    const std::uint64_t at = (next_ + count - 1) / count * count % pages_;
    next_ = at + count;
    const auto used = slots_.lower_bound(at);
    if (used != slots_.end() && used->first < at + count) continue;
    for (std::uint64_t i = 0; i < count; ++i) slots_[at + i] = *slot + i;
    const Pfn pfn = map_->first() + PageCount(at);
    CHECK(map_->init_folio(pfn, order).has_value());
    return pfn;
  }
  device_.release(*slot, count);
  return fail(Errc::kDeviceFull, 0, "sim driver");
}

// A folio that was allocated and will not be used: DM-05.
void SimDriver::give_back(Pfn pfn, unsigned order) {
  (void)order;
  space_.page(pfn)->unlock();
  space_.put_page(pfn);
}

void SimDriver::folio_free(Pfn head, unsigned order) noexcept {
  for (std::uint64_t i = 0; i < (std::uint64_t{1} << order); ++i) {
    const auto it = slots_.find(index(head) + i);
    CHECK(it != slots_.end(), "a device page was freed twice");
    const DeviceSlot slot = it->second;
    slots_.erase(it);
    device_.release(slot, 1);
  }
}

void SimDriver::folio_split(Pfn head, Pfn piece) noexcept {
  // The last call of a split names no piece.
  if (piece != Pfn()) CHECK(slots_.contains(index(head)) && slots_.contains(index(piece)));
}

bool SimDriver::transfer(DeviceOp::Kind kind, Pfn pfn, std::byte* memory, std::uint64_t pages) {
  // One operation per run of consecutive slots.
  std::vector<DeviceOp> ops;
  for (std::uint64_t i = 0; i < pages; ++i) {
    const DeviceSlot slot = slots_.at(index(pfn) + i);
    if (!ops.empty() && ops.back().first + ops.back().pages == slot && ops.back().pages < kUnit) {
      ++ops.back().pages;
    } else {
      ops.push_back({kind, slot, 1, memory + i * kPageSize, {}});
    }
  }
  DeviceBatch batch{ops};
  device_.submit(batch);
  device_.wait(batch);
  return std::all_of(ops.begin(), ops.end(), [](const DeviceOp& op) { return op.result.has_value(); });
}

bool SimDriver::store(Pfn to, const std::byte* from, std::uint64_t pages) {
  return transfer(DeviceOp::Kind::kStore, to, const_cast<std::byte*>(from), pages);
}

bool SimDriver::load(Pfn from, std::byte* to, std::uint64_t pages) {
  const bool loaded = transfer(DeviceOp::Kind::kLoad, from, to, pages);
  if (!loaded) ++failed_loads_;
  return loaded;
}

// ---- out ---------------------------------------------------------------------------------------------------------

void SimDriver::fill_out_small(Arrays& words, std::uint64_t i, const std::byte* from) {
  const Result<Pfn> to = allocate(0);
  if (!to) return;
  alignas(kPageSize) static const std::byte zeros[kPageSize]{};
  if (store(*to, from != nullptr ? from : zeros, 1)) {
    words.dst[i] = MigrateWord::of(*to);
  } else {
    give_back(*to, 0);
  }
}

void SimDriver::fill_out(MigrateVma& args, Arrays& words) {
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    const MigrateWord source = words.src[i];
    if (!source.migrating()) continue;
    const std::byte* from = source.valid() ? space_.bytes(source.pfn()) : nullptr;
    if (!source.compound()) {
      fill_out_small(words, i, from);
      continue;
    }
    const std::uint64_t n = std::min<std::uint64_t>(kPagesPerHuge, args.npages - i);
    const Result<Pfn> huge = short_of_something() ? fail(Errc::kDeviceFull) : allocate(kHugeOrder);
    if (huge) {
      std::vector<std::byte> zeros(from == nullptr ? kHugeSize : 0);
      if (store(*huge, from != nullptr ? from : zeros.data(), kPagesPerHuge)) {
        words.dst[i] = MigrateWord::of(*huge).with(MigrateWord::kCompound);
      } else {
        give_back(*huge, kHugeOrder);
      }
    } else if (scarce_) {
      // Small pages for a part of it: the rest stays (partial dst is legal).
      for (std::uint64_t j = 0; j < n && j < 8; ++j) {
        fill_out_small(words, i + j, from == nullptr ? nullptr : from + j * kPageSize);
      }
    }
    i += n - 1;
  }
}

std::uint64_t SimDriver::to_device(PageRange range, bool compound, Holes holes) {
  Arrays words(range.count.raw());
  MigrateVma args;
  args.start = range.first.address();
  args.end = range.end().address();
  args.src = words.src.data();
  args.dst = words.dst.data();
  args.pgmap_owner = this;
  args.flags = kSelectSystem | (compound ? kSelectCompound : 0);
  args.skip_holes = holes == Holes::kLeave;
  if (!migrate_vma_setup(space_, args)) return 0;
  fill_out(args, words);
  migrate_vma_pages(space_, args);
  std::uint64_t moved = 0;
  for (std::uint64_t i = 0; i < args.npages; ++i) moved += words.src[i].migrating() ? words.src[i].pages().raw() : 0;
  migrate_vma_finalize(space_, args);
  return moved;
}

// ---- home --------------------------------------------------------------------------------------------------------

void SimDriver::fill_home_word(MigrateWord source, MigrateWord* dst, std::uint64_t left) {
  if (source.compound()) {
    const Result<Pfn> huge = short_of_something() ? fail(Errc::kNoMemory) : space_.alloc_huge_frame();
    if (huge) {
      if (load(source.pfn(), space_.bytes(*huge), kPagesPerHuge)) {
        dst[0] = MigrateWord::of(*huge).with(MigrateWord::kCompound);
      } else {
        space_.page(*huge)->unlock();
        space_.put_page(*huge);
      }
      return;
    }
  }
  // Base pages, also where a huge one could not be had.
  const std::uint64_t n = std::min<std::uint64_t>(source.compound() ? kPagesPerHuge : 1, left);
  for (std::uint64_t i = 0; i < n; ++i) {
    const Result<Pfn> frame = space_.alloc_frames(PageCount(1));
    if (!frame) return;
    if (load(source.pfn() + PageCount(i), space_.bytes(*frame), 1)) {
      dst[i] = MigrateWord::of(*frame);
    } else {
      space_.free_frames(*frame, PageCount(1));
    }
  }
}

void SimDriver::fill_home(MigrateVma& args, Arrays& words) {
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    const MigrateWord source = words.src[i];
    if (!source.migrating() || !source.valid()) continue;
    fill_home_word(source, &words.dst[i], args.npages - i);
    if (source.compound()) i += kPagesPerHuge - 1;
  }
}

std::uint64_t SimDriver::to_ram(PageRange range, bool compound, Pfn fault_page) {
  Arrays words(range.count.raw());
  MigrateVma args;
  args.start = range.first.address();
  args.end = range.end().address();
  args.src = words.src.data();
  args.dst = words.dst.data();
  args.pgmap_owner = this;
  args.flags = kSelectDevicePrivate | (compound ? kSelectCompound : 0);
  args.fault_page = fault_page;
  args.skip_holes = true;
  if (!migrate_vma_setup(space_, args)) return 0;
  fill_home(args, words);
  migrate_vma_pages(space_, args);
  std::uint64_t moved = 0;
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    if (words.src[i].migrating() && words.src[i].valid()) moved += words.src[i].pages().raw();
  }
  migrate_vma_finalize(space_, args);
  return moved;
}

std::uint64_t SimDriver::evict_frames() {
  std::vector<std::uint64_t> heads;
  for (const auto& [at, slot] : slots_) heads.push_back(at);
  std::uint64_t moved = 0;
  for (std::size_t i = 0; i < heads.size();) {
    const Pfn pfn = map_->first() + PageCount(heads[i]);
    const Page* page = space_.page(pfn);
    const std::uint64_t n = page != nullptr && page->order() != 0 ? kPagesPerHuge : 1;
    Arrays words(n);
    migrate_device_range(space_, words.src.data(), pfn, n);
    if (words.src[0].migrating()) fill_home_word(words.src[0], words.dst.data(), n);
    migrate_device_pages(space_, words.src.data(), words.dst.data(), n);
    if (words.src[0].migrating()) moved += words.src[0].pages().raw();
    migrate_device_finalize(space_, words.src.data(), words.dst.data(), n);
    while (i < heads.size() && heads[i] < (pfn - map_->first()).raw() + n) ++i;
  }
  return moved;
}

FaultResult SimDriver::migrate_to_ram(FaultContext& fault) noexcept {
  const PageIndex page = PageIndex::of(fault.address);
  const std::uint64_t failed = failed_loads_;
  const PageRange range =
      fault.huge ? PageRange{page.huge_base(), PageCount(kPagesPerHuge)} : PageRange{page, PageCount(1)};
  (void)to_ram(range, fault.huge, fault.page);
  return failed == failed_loads_ ? FaultResult::kDone : FaultResult::kSigbus;
}

}  // namespace whimbrel::sim
