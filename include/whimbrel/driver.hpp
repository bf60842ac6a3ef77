// Driver: a complete driver around a device that can store pages and load them back. What a new device has to bring is one
// class with store() and load(); everything else that hmm.h asks of a driver is here.
//
// Life:
//   1. Space::start(); space->manage(memory, bytes)      the engine, and what may be migrated
//   2. Driver<MyDevice>::create(*space, device)          the device's pages become known
//   3. driver->populate(memory, bytes)                   pages leave, as many as can; the program goes on
//      the program touches them                          they come home, 2 MiB at once where they left so
//   4. driver->evict()                                   everything comes home by the device's page numbers
//   5. the destructors, in the opposite order
//
// Thread-safe apart from construction and destruction. Header-only over the C interface; C++23. Errors are negative errno,
// whimbrel_error() has the sentence.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <expected>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "whimbrel/device_memory.hpp"
#include "whimbrel/hmm.h"

namespace whimbrel {

// What a device is. `page` counts from 0; `count` is 1 or 512; memory is page aligned, count * 4096 bytes.
//   pages()   how many there are. store() and load() say whether it worked; a failed store leaves the page in RAM, a failed
//             load leaves it on the device, and the access that wanted it gets SIGBUS.
// Called from any thread, several at a time, never for the same page. Must not touch memory that is managed: a thread that
// loads a page must not need one. The same goes for what they take their locks with.
template <class D>
concept PageDevice = requires(D& device, std::uint64_t page, std::size_t count, const std::byte* from, std::byte* to) {
  { device.pages() } -> std::convertible_to<std::uint64_t>;
  { device.store(page, count, from) } -> std::same_as<bool>;
  { device.load(page, count, to) } -> std::same_as<bool>;
};

// The engine of this process and the ranges it manages; stops it when it goes. Drivers must have gone before.
class Space {
 public:
  [[nodiscard]] static std::expected<Space, int> start(const whimbrel_options* options = nullptr) {
    mm_struct* mm = nullptr;
    if (const int error = whimbrel_start(options, &mm); error != 0) return std::unexpected(error);
    return Space(mm);
  }
  Space(Space&& other) noexcept : mm_(std::exchange(other.mm_, nullptr)) {}
  Space& operator=(Space&&) = delete;
  ~Space() {
    if (mm_ != nullptr) (void)whimbrel_stop(mm_);
  }
  // Page aligned. See whimbrel_register_range(), whimbrel_unregister_range().
  [[nodiscard]] int manage(const void* memory, std::size_t bytes) {
    return whimbrel_register_range(mm_, reinterpret_cast<unsigned long>(memory), bytes);
  }
  [[nodiscard]] int leave(const void* memory, std::size_t bytes) {
    return whimbrel_unregister_range(mm_, reinterpret_cast<unsigned long>(memory), bytes);
  }
  [[nodiscard]] mm_struct* mm() const { return mm_; }

 private:
  explicit Space(mm_struct* mm) : mm_(mm) {}
  mm_struct* mm_;
};

struct DriverOptions {
  // What has come home because it was touched is left alone for this long: otherwise a program that uses more than fits
  // makes the driver send away what it needs next (PM-05).
  std::chrono::nanoseconds stay_home = std::chrono::milliseconds(20);
  // What has been populated stays on the device at least for this long: a touch waits (DRV-06). 0: it does not.
  std::chrono::nanoseconds stay_away{0};
  // Base pages brought home by one touch: aligned, a power of 2 up to 512; only what is on the same device (DRV-07).
  unsigned fault_window = 16;
  int evict_attempts = 3;  // DRV-08
};

// What became of a range, in base pages.
struct Populated {
  std::uint64_t moved = 0;   // on the device now
  std::uint64_t stayed = 0;  // not: pinned, file memory, device full, already away, ...
  std::uint64_t recent = 0;  // of these: came home too short a time ago
  [[nodiscard]] bool complete() const { return stayed == 0; }
};

template <PageDevice D>
class Driver {
 public:
  struct Stats {
    std::atomic<std::uint64_t> stored{0}, loaded{0};              // base pages
    std::atomic<std::uint64_t> faults{0}, delayed{0};             // touches; of these: put off by stay_away
    std::atomic<std::uint64_t> store_errors{0}, load_errors{0};   // transfers that failed
    std::atomic<std::uint64_t> fallbacks{0};                      // units that went or came in single pages
  };

  // `device` outlives the driver. Errors of memremap_pages().
  [[nodiscard]] static std::expected<std::unique_ptr<Driver>, int> create(Space& space, D& device,
                                                                          DriverOptions options = {}) {
    std::unique_ptr<Driver> driver(new Driver(space.mm(), device, options));
    if (driver->memory_.pages() == 0) return std::unexpected(-EINVAL);
    driver->pgmap_.range = {0, driver->memory_.pages() * PAGE_SIZE - 1};
    const void* mapped = memremap_pages(&driver->pgmap_, NUMA_NO_NODE);
    if (IS_ERR(mapped)) return std::unexpected(static_cast<int>(PTR_ERR(mapped)));
    driver->first_ = driver->pgmap_.range.start / PAGE_SIZE;
    return driver;
  }
  // Brings everything home, waiting for pages that are busy.
  ~Driver() {
    memory_.close();
    if (pgmap_.whimbrel_private == nullptr) return;
    while (whimbrel_current_mm() == mm_ && evict() != 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    memunmap_pages(&pgmap_);
  }
  Driver(const Driver&) = delete;
  Driver& operator=(const Driver&) = delete;

  // Sends [start, start + bytes) away, page aligned, unit by unit and across mappings. EINVAL, ENOENT: not aligned, not
  // mapped or not managed; what came before it has moved all the same.
  [[nodiscard]] std::expected<Populated, int> populate(void* start, std::size_t bytes) {
    Populated total;
    const auto from = reinterpret_cast<unsigned long>(start);
    if ((from | bytes) % PAGE_SIZE != 0) return std::unexpected(-EINVAL);
    for (unsigned long at = from; at < from + bytes;) {
      vm_area_struct vma{};
      if (const int error = whimbrel_find_vma(mm_, at, &vma); error != 0) return std::unexpected(error);
      const unsigned long end = std::min({(at | (HPAGE_PMD_SIZE - 1)) + 1, from + bytes, vma.vm_end});
      const unsigned long pages = (end - at) / PAGE_SIZE;
      std::uint64_t moved = 0;
      if (came_home_recently(at)) {
        total.recent += pages;
      } else if (const int error = populate_part(vma, at, end, &moved); error != 0) {
        return std::unexpected(error);
      }
      total.moved += moved;
      total.stayed += pages - moved;
      at = end;
    }
    return total;
  }

  // Brings home all pages of the device, whoever maps them. EBUSY: some could not come in any attempt.
  [[nodiscard]] int evict() {
    for (int attempt = 0; attempt < options_.evict_attempts; ++attempt) {
      for (std::uint64_t at = 0; at < memory_.pages(); at += HPAGE_PMD_NR) {
        if (whimbrel_pages_in_use(&pgmap_) == 0) return 0;
        unsigned long src[HPAGE_PMD_NR] = {}, dst[HPAGE_PMD_NR] = {};
        migrate_device_range(src, first_ + at, HPAGE_PMD_NR);
        (void)fill_home(src, dst, HPAGE_PMD_NR, nullptr, false);
        migrate_device_pages(src, dst, HPAGE_PMD_NR);
        migrate_device_finalize(src, dst, HPAGE_PMD_NR);
      }
    }
    return whimbrel_pages_in_use(&pgmap_) == 0 ? 0 : -EBUSY;
  }

  [[nodiscard]] const Stats& stats() const { return stats_; }
  [[nodiscard]] std::uint64_t pages_in_use() const { return whimbrel_pages_in_use(&pgmap_); }

 private:
  using Clock = std::chrono::steady_clock;

  Driver(mm_struct* mm, D& device, DriverOptions options)
      : mm_(mm), device_(device), options_(options), memory_(device.pages()), populated_(memory_.pages() / HPAGE_PMD_NR) {
    pgmap_.type = MEMORY_DEVICE_PRIVATE;
    pgmap_.nr_range = 1;
    pgmap_.ops = &kOps;
    pgmap_.owner = this;
  }
  static Driver& of(const page* page) { return *static_cast<Driver*>(page_pgmap(page)->owner); }
  [[nodiscard]] std::uint64_t number(const page* page) const { return page_to_pfn(page) - first_; }

  // ---- out ----------------------------------------------------------------------------------------------------------------

  int populate_part(vm_area_struct& vma, unsigned long start, unsigned long end, std::uint64_t* moved) {
    unsigned long src[HPAGE_PMD_NR], dst[HPAGE_PMD_NR];
    migrate_vma args{};
    args.vma = &vma;
    args.src = src;
    args.dst = dst;
    args.start = start;
    args.end = end;
    args.pgmap_owner = this;
    args.flags = MIGRATE_VMA_SELECT_SYSTEM | MIGRATE_VMA_SELECT_COMPOUND;
    if (const int error = migrate_vma_setup(&args); error != 0) return error;
    for (unsigned long i = 0; i < args.npages; ++i) {
      if ((src[i] & MIGRATE_PFN_MIGRATE) == 0) continue;  // DRV-01
      const page* from = migrate_pfn_to_page(src[i]);
      if ((src[i] & MIGRATE_PFN_COMPOUND) == 0) {
        dst[i] = store(from, 0);
      } else if (dst[i] = store(from, HPAGE_PMD_ORDER); dst[i] == 0) {
        ++stats_.fallbacks;
        for (unsigned long k = 0; k < HPAGE_PMD_NR; ++k) dst[i + k] = store(from == nullptr ? nullptr : from + k, 0);
        i += HPAGE_PMD_NR - 1;
      }
    }
    migrate_vma_pages(&args);
    for (unsigned long i = 0; i < args.npages; ++i) {
      if ((src[i] & MIGRATE_PFN_MIGRATE) == 0) continue;
      *moved += (src[i] & MIGRATE_PFN_COMPOUND) != 0 ? HPAGE_PMD_NR : 1;
    }
    migrate_vma_finalize(&args);
    return 0;
  }

  // A destination word with the contents stored; 0: there is no room, or the device failed. `from` null: zeros.
  unsigned long store(const page* from, unsigned order) {
    static const std::vector<std::byte> kZeros(HPAGE_PMD_SIZE);
    const auto place = memory_.take(order);
    if (!place) return 0;
    page* to = pfn_to_page(first_ + *place);
    if (zone_device_page_init(to, &pgmap_, order) != 0) {
      memory_.give(*place, order);
      return 0;
    }
    const auto* bytes = from == nullptr ? kZeros.data() : static_cast<const std::byte*>(page_address(from));
    if (!device_.store(*place, std::size_t{1} << order, bytes)) {
      ++stats_.store_errors;
      unlock_page(to);
      put_page(to);  // folio_free() gives the place back
      return 0;
    }
    stats_.stored += std::uint64_t{1} << order;
    populated_[*place / HPAGE_PMD_NR].store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
    return migrate_pfn(page_to_pfn(to)) | (order != 0 ? MIGRATE_PFN_COMPOUND : 0);
  }

  // ---- home ---------------------------------------------------------------------------------------------------------------

  // Destinations in RAM for what is migrating, contents loaded. Why `wanted` (null: nothing in particular) got none.
  vm_fault_t fill_home(unsigned long* src, unsigned long* dst, unsigned long n, const page* wanted, bool may_split) {
    vm_fault_t result = 0;
    for (unsigned long i = 0; i < n; ++i) {
      const page* from = migrate_pfn_to_page(src[i]);
      if (from == nullptr || (src[i] & MIGRATE_PFN_MIGRATE) == 0) continue;
      const bool unit = (src[i] & MIGRATE_PFN_COMPOUND) != 0;
      vm_fault_t failed = 0;
      dst[i] = load(from, unit ? HPAGE_PMD_ORDER : 0, &failed);
      if (!unit || dst[i] != 0 || failed != VM_FAULT_OOM || !may_split) {
        const unsigned long pages = unit ? HPAGE_PMD_NR : 1;
        if (wanted != nullptr && wanted >= from && wanted < from + pages && dst[i] == 0) result = failed;
        continue;
      }
      ++stats_.fallbacks;  // no 2 MiB of RAM: 512 pages, as many as there are (CF-11)
      for (unsigned long k = 0; k < HPAGE_PMD_NR; ++k) {
        failed = 0;
        dst[i + k] = load(from + k, 0, &failed);
        if (wanted == from + k && dst[i + k] == 0) result = failed;
      }
      i += HPAGE_PMD_NR - 1;
    }
    return result;
  }

  unsigned long load(const page* from, unsigned order, vm_fault_t* failed) {
    folio* to = folio_alloc(GFP_HIGHUSER_MOVABLE, order);
    if (to == nullptr) {
      *failed = VM_FAULT_OOM;
      return 0;
    }
    folio_lock(to);
    if (!device_.load(number(from), std::size_t{1} << order, static_cast<std::byte*>(page_address(&to->page)))) {
      ++stats_.load_errors;
      folio_unlock(to);
      folio_put(to);
      *failed = VM_FAULT_SIGBUS;
      return 0;
    }
    stats_.loaded += std::uint64_t{1} << order;
    return migrate_pfn(folio_pfn(to)) | (order != 0 ? MIGRATE_PFN_COMPOUND : 0);
  }

  vm_fault_t fault(vm_fault* vmf) {
    ++stats_.faults;
    if (put_off(vmf->page)) return 0;
    const bool unit = vmf->pte == nullptr;
    const unsigned long window = unit ? HPAGE_PMD_SIZE : std::bit_floor(std::clamp(options_.fault_window, 1u, 512u)) * PAGE_SIZE;
    vm_area_struct vma = *vmf->vma;
    unsigned long src[HPAGE_PMD_NR], dst[HPAGE_PMD_NR];
    migrate_vma args{};
    args.vma = &vma;
    args.src = src;
    args.dst = dst;
    args.start = std::max(vmf->address & ~(window - 1), vma.vm_start);
    args.end = std::min((vmf->address | (window - 1)) + 1, vma.vm_end);
    args.pgmap_owner = this;
    args.flags = MIGRATE_VMA_SELECT_DEVICE_PRIVATE;
    if (unit) args.flags |= MIGRATE_VMA_SELECT_COMPOUND;
    args.fault_page = vmf->page;  // CF-05: locked and referenced by the fault path, which keeps both
    if (migrate_vma_setup(&args) != 0) return VM_FAULT_SIGBUS;
    const vm_fault_t result = fill_home(src, dst, args.npages, vmf->page, true);
    migrate_vma_pages(&args);
    note_came_home(vmf->address);  // before its toucher runs on, and could send it away again
    migrate_vma_finalize(&args);
    return result;
  }

  // DRV-06: nothing moves before its time; the touch comes again. Waits here rather than let it spin.
  bool put_off(const page* page) {
    if (options_.stay_away.count() == 0) return false;
    const Clock::time_point since{Clock::duration(populated_[number(page) / HPAGE_PMD_NR].load(std::memory_order_relaxed))};
    const auto left = since + options_.stay_away - Clock::now();
    if (left.count() <= 0) return false;
    ++stats_.delayed;
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(left, std::chrono::milliseconds(1)));
    return true;
  }

  // ---- when which 2 MiB of addresses came home: the last few thousand; one forgotten is one not spared ------------------------

  struct Homecoming {
    std::atomic<unsigned long> unit{0};
    std::atomic<Clock::rep> at{0};
  };
  static constexpr std::size_t kHomecomings = 4096;
  Homecoming& homecoming(unsigned long unit) { return homecomings_[(unit * 0x9e3779b97f4a7c15u >> 32) % kHomecomings]; }
  void note_came_home(unsigned long address) {
    Homecoming& entry = homecoming(address / HPAGE_PMD_SIZE);
    entry.at.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
    entry.unit.store(address / HPAGE_PMD_SIZE, std::memory_order_relaxed);
  }
  bool came_home_recently(unsigned long address) {
    const Homecoming& entry = homecoming(address / HPAGE_PMD_SIZE);
    if (entry.unit.load(std::memory_order_relaxed) != address / HPAGE_PMD_SIZE) return false;
    const Clock::time_point at{Clock::duration(entry.at.load(std::memory_order_relaxed))};
    return Clock::now() < at + options_.stay_home;
  }

  // ---- callbacks ------------------------------------------------------------------------------------------------------------

  static vm_fault_t migrate_to_ram(vm_fault* vmf) { return of(vmf->page).fault(vmf); }
  static void folio_free(folio* folio) {
    Driver& driver = of(&folio->page);
    driver.memory_.give(driver.number(&folio->page), folio_order(folio));
  }
  static constexpr dev_pagemap_ops kOps{&Driver::folio_free, &Driver::migrate_to_ram, nullptr};

  mm_struct* const mm_;
  D& device_;
  const DriverOptions options_;
  DeviceMemory memory_;
  dev_pagemap pgmap_{};
  unsigned long first_ = 0;
  Stats stats_;
  std::vector<std::atomic<Clock::rep>> populated_;  // [unit of the device]: when it was last stored to
  std::vector<Homecoming> homecomings_{kHomecomings};
};

}  // namespace whimbrel
