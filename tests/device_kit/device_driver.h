// A driver that keeps the pages of an address space on any Device: frame numbers are slots, one to one. For tests.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "migrate/fault.h"
#include "migrate/migrate_vma.h"
#include "port/device.h"

namespace whimbrel::testing {

class DeviceDriver final : public PageMapOps {
 public:
  DeviceDriver(AddressSpace& space, Device& device)
      : space_(space),
        device_(device),
        unit_(device.traits().unit_pages),
        map_(space.add_page_map(MemoryType::kPrivate, PageCount(device.traits().slots), this, this).value()) {}

  [[nodiscard]] PageMap& map() { return *map_; }

  // Moves the range (at most 512 pages) to the device, as many pages together as it likes; returns how many went.
  std::uint64_t to_device(std::byte* at, std::size_t bytes) {
    std::vector<MigrateWord> src(bytes / kPageSize), dst(bytes / kPageSize);
    MigrateVma args = arguments(VirtualAddress(at), bytes, src, dst);
    args.flags = kSelectSystem;
    if (!migrate_vma_setup(space_, args)) return 0;
    for (std::uint64_t i = 0; i < args.npages;) i += store_run(src, dst, i, args.npages);
    migrate_vma_pages(space_, args);
    std::uint64_t moved = 0;
    for (std::uint64_t i = 0; i < args.npages; ++i) moved += src[i].migrating() && src[i].valid() ? 1 : 0;
    migrate_vma_finalize(space_, args);
    return moved;
  }

  // Brings every page home that rests on one of these slots; returns how many.
  std::uint64_t evacuate(Pfn first, std::uint64_t pages) {
    std::vector<MigrateWord> src(pages), dst(pages);
    migrate_device_range(space_, src.data(), first, pages);
    load_all(src, dst, pages);
    migrate_device_pages(space_, src.data(), dst.data(), pages);
    std::uint64_t moved = 0;
    for (std::uint64_t i = 0; i < pages; ++i) moved += src[i].migrating() && dst[i].valid() ? 1 : 0;
    migrate_device_finalize(space_, src.data(), dst.data(), pages);
    return moved;
  }

  FaultResult migrate_to_ram(FaultContext& fault) noexcept override {
    std::vector<MigrateWord> src(1), dst(1);
    const PageIndex page = PageIndex::of(fault.address);
    MigrateVma args = arguments(page.address(), kPageSize, src, dst);
    args.flags = kSelectDevicePrivate;
    args.fault_page = fault.page;
    args.skip_holes = true;
    if (!migrate_vma_setup(space_, args)) return FaultResult::kDone;
    const bool loaded = load_all(src, dst, args.npages);
    migrate_vma_pages(space_, args);
    migrate_vma_finalize(space_, args);
    return loaded ? FaultResult::kDone : FaultResult::kSigbus;
  }
  void folio_free(Pfn head, unsigned order) noexcept override { device_.release(slot_of(head), 1u << order); }
  bool serves_inline() const noexcept override { return true; }

 private:
  MigrateVma arguments(VirtualAddress start, std::size_t bytes, std::vector<MigrateWord>& src,
                       std::vector<MigrateWord>& dst) {
    MigrateVma args;
    args.start = start;
    args.end = VirtualAddress(start.raw() + bytes);
    args.src = src.data();
    args.dst = dst.data();
    args.pgmap_owner = this;
    return args;
  }
  [[nodiscard]] DeviceSlot slot_of(Pfn pfn) const { return DeviceSlot{(pfn - map_->first()).raw()}; }

  Result<void> transfer(DeviceOp::Kind kind, DeviceSlot slot, std::uint32_t pages, std::byte* memory) {
    DeviceOp op{.kind = kind, .first = slot, .pages = pages, .memory = memory};
    DeviceBatch batch{.ops = {&op, 1}};
    device_.submit(batch);
    device_.wait(batch);
    return op.result;
  }

  // Stores the run of taken pages at `i`, up to a unit of them; returns how many entries it has seen.
  std::uint64_t store_run(std::vector<MigrateWord>& src, std::vector<MigrateWord>& dst, std::uint64_t i,
                          std::uint64_t end) {
    std::uint32_t n = 0;
    while (n < unit_ && i + n < end && src[i + n].migrating() && src[i + n].valid()) ++n;
    if (n == 0) return 1;
    std::vector<std::byte> room((n + 1) * kPageSize);
    auto* memory = reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(room.data()) + kPageSize - 1) &
                                                ~(std::uintptr_t{kPageSize} - 1));
    for (std::uint32_t j = 0; j < n; ++j) {
      std::memcpy(memory + j * kPageSize, space_.bytes(src[i + j].pfn()), kPageSize);
    }
    const Result<DeviceSlot> slot = device_.reserve(n);
    if (!slot) return n;
    if (!transfer(DeviceOp::Kind::kStore, *slot, n, memory)) {
      device_.release(*slot, n);
      return n;
    }
    for (std::uint32_t j = 0; j < n; ++j) {
      const Pfn pfn = map_->first() + PageCount(static_cast<std::uint64_t>(*slot) + j);
      EXPECT_TRUE(map_->init_folio(pfn, 0).has_value());
      dst[i + j] = MigrateWord::of(pfn);
    }
    return n;
  }

  bool load_all(std::vector<MigrateWord>& src, std::vector<MigrateWord>& dst, std::uint64_t pages) {
    bool good = true;
    for (std::uint64_t i = 0; i < pages; ++i) {
      if (!src[i].migrating() || !src[i].valid()) continue;
      const Result<Pfn> to = space_.alloc_frames(PageCount(1));
      if (!to) return false;
      if (transfer(DeviceOp::Kind::kLoad, slot_of(src[i].pfn()), 1, space_.bytes(*to))) {
        dst[i] = MigrateWord::of(*to);
      } else {
        space_.free_frames(*to, PageCount(1));
        good = false;
      }
    }
    return good;
  }

  AddressSpace& space_;
  Device& device_;
  const std::uint32_t unit_;
  PageMap* map_;
};

}  // namespace whimbrel::testing
