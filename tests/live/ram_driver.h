// A driver as small as a driver can be: device memory is an array, copies are memcpy. For tests of the protocol.
#pragma once

#include <sys/mman.h>

#include <cstring>
#include <mutex>
#include <vector>

#include "migrate/fault.h"
#include "migrate/migrate_vma.h"

namespace whimbrel::live {

class RamDriver final : public PageMapOps {
 public:
  RamDriver(AddressSpace& space, std::uint64_t pages) : space_(space), pages_(pages) {
    memory_ = static_cast<std::byte*>(
        mmap(nullptr, pages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    map_ = space.add_page_map(MemoryType::kPrivate, PageCount(pages), this, this).value();
    for (std::uint64_t unit = pages / kPagesPerHuge; unit-- > 1;) free_units_.push_back(unit * kPagesPerHuge);
    for (std::uint64_t i = kPagesPerHuge; i-- > 0;) free_pages_.push_back(i);
  }
  ~RamDriver() override { munmap(memory_, pages_ * kPageSize); }

  std::byte* bytes(Pfn pfn) { return memory_ + (pfn - map_->first()).bytes(); }
  PageMap& map() { return *map_; }

  // A fresh folio, locked, one reference; no value when the device is full.
  Result<Pfn> alloc(unsigned order) {
    std::uint64_t at = 0;
    {
      std::lock_guard hold(mutex_);
      if (order == 0 && free_pages_.empty() && !free_units_.empty()) {
        const std::uint64_t unit = free_units_.back();
        free_units_.pop_back();
        for (std::uint64_t i = kPagesPerHuge; i-- > 0;) free_pages_.push_back(unit + i);
      }
      std::vector<std::uint64_t>& list = order == 0 ? free_pages_ : free_units_;
      if (list.empty()) return fail(Errc::kDeviceFull);
      at = list.back();
      list.pop_back();
    }
    const Pfn pfn = map_->first() + PageCount(at);
    if (const Result<Page*> page = map_->init_folio(pfn, order); !page) return std::unexpected(page.error());
    return pfn;
  }

  // Moves what it can of the range to the device; returns how many pages went.
  std::uint64_t to_device(void* start, std::size_t bytes, bool huge = true) {
    std::vector<MigrateWord> src(bytes / kPageSize), dst(bytes / kPageSize);
    MigrateVma args;
    args.start = VirtualAddress(start);
    args.end = VirtualAddress(static_cast<char*>(start) + bytes);
    args.src = src.data();
    args.dst = dst.data();
    args.pgmap_owner = this;
    args.flags = kSelectSystem | (huge ? kSelectCompound : 0);
    if (!migrate_vma_setup(space_, args)) return 0;
    for (std::uint64_t i = 0; i < args.npages; ++i) {
      if (!src[i].migrating()) continue;
      const std::uint64_t n = src[i].pages().raw();
      const Result<Pfn> to = alloc(n == 1 ? 0 : kHugeOrder);
      if (!to) continue;
      if (src[i].valid()) std::memcpy(bytes_of(*to), space_.bytes(src[i].pfn()), n * kPageSize);
      else std::memset(bytes_of(*to), 0, n * kPageSize);
      dst[i] = MigrateWord::of(*to).with(n == 1 ? 0 : MigrateWord::kCompound);
    }
    migrate_vma_pages(space_, args);
    std::uint64_t moved = 0;
    for (std::uint64_t i = 0; i < args.npages; ++i) moved += src[i].migrating() ? src[i].pages().raw() : 0;
    migrate_vma_finalize(space_, args);
    return moved;
  }

  // Brings home what is on the device; returns how many pages came. kInvalid from setup is no pages.
  std::uint64_t to_ram(VirtualAddress start, std::size_t bytes, Pfn fault_page = Pfn(), bool huge = true) {
    std::vector<MigrateWord> src(bytes / kPageSize), dst(bytes / kPageSize);
    MigrateVma args;
    args.start = start;
    args.end = VirtualAddress(start.raw() + bytes);
    args.src = src.data();
    args.dst = dst.data();
    args.pgmap_owner = this;
    args.flags = kSelectDevicePrivate | (huge ? kSelectCompound : 0);
    args.fault_page = fault_page;
    args.skip_holes = true;
    if (!migrate_vma_setup(space_, args)) return 0;
    for (std::uint64_t i = 0; i < args.npages; ++i) {
      if (!src[i].migrating() || !src[i].valid()) continue;
      const std::uint64_t n = src[i].pages().raw();
      const Result<Pfn> to = n == 1 ? space_.alloc_frames(PageCount(1)) : space_.alloc_huge_frame();
      if (!to) continue;
      std::memcpy(space_.bytes(*to), bytes_of(src[i].pfn()), n * kPageSize);
      dst[i] = MigrateWord::of(*to).with(n == 1 ? 0 : MigrateWord::kCompound);
    }
    migrate_vma_pages(space_, args);
    std::uint64_t moved = 0;
    for (std::uint64_t i = 0; i < args.npages; ++i) {
      moved += src[i].migrating() && src[i].valid() ? src[i].pages().raw() : 0;
    }
    migrate_vma_finalize(space_, args);
    return moved;
  }

  FaultResult migrate_to_ram(FaultContext& fault) noexcept override {
    if (fail_faults) return FaultResult::kSigbus;
    const PageIndex page = PageIndex::of(fault.address);
    const PageIndex first = fault.huge ? page.huge_base() : page;
    (void)to_ram(first.address(), fault.huge ? kHugeSize : kPageSize, fault.page, fault.huge);
    return FaultResult::kDone;
  }
  void folio_free(Pfn head, unsigned order) noexcept override {
    std::memset(bytes_of(head), 0xdd, kPageSize << order);  // whoever reads it now reads rubbish
    std::lock_guard hold(mutex_);
    (order == 0 ? free_pages_ : free_units_).push_back((head - map_->first()).raw());
  }
  void folio_split(Pfn, Pfn) noexcept override { ++splits; }
  bool serves_inline() const noexcept override { return true; }

  std::atomic<bool> fail_faults{false};
  std::atomic<int> splits{0};

 private:
  std::byte* bytes_of(Pfn pfn) { return bytes(pfn); }

  AddressSpace& space_;
  const std::uint64_t pages_;
  std::byte* memory_ = nullptr;
  PageMap* map_ = nullptr;
  std::mutex mutex_;
  std::vector<std::uint64_t> free_pages_, free_units_;
};

}  // namespace whimbrel::live
