// A driver written against the C interface alone, for tests of it: device memory is an array, copies are memcpy.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <mutex>
#include <vector>

#include "whimbrel/hmm.h"

namespace whimbrel::capi {

// Private anonymous memory at a 2 MiB boundary, registered.
class Memory {
 public:
  Memory(mm_struct* mm, std::size_t bytes, bool huge = false) : mm_(mm), bytes_(bytes) {
    char* raw = static_cast<char*>(
        mmap(nullptr, bytes + 2 * HPAGE_PMD_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    at_ = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(raw) + HPAGE_PMD_SIZE) & ~(HPAGE_PMD_SIZE - 1));
    mmap(at_, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    madvise(at_, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    error = whimbrel_register_range(mm, address(), bytes);
  }
  ~Memory() {
    if (whimbrel_current_mm() == mm_) (void)whimbrel_unregister_range(mm_, address(), bytes_);
    munmap(at_, bytes_);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  [[nodiscard]] char* at(std::size_t page = 0) const { return at_ + page * PAGE_SIZE; }
  [[nodiscard]] unsigned long address(std::size_t page = 0) const { return reinterpret_cast<unsigned long>(at(page)); }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  void fill() const {
    for (std::size_t i = 0; i < bytes_ / PAGE_SIZE; ++i) std::memset(at(i), static_cast<int>(1 + i % 250), PAGE_SIZE);
  }
  [[nodiscard]] std::size_t wrong(std::size_t from, std::size_t pages) const {
    std::size_t bad = 0;
    for (std::size_t i = from; i < from + pages; ++i) {
      for (std::size_t k : {0ul, 2047ul, PAGE_SIZE - 1}) bad += at(i)[k] != static_cast<char>(1 + i % 250);
    }
    return bad;
  }
  int error = 0;

 private:
  mm_struct* mm_;
  char* at_;
  std::size_t bytes_;
};

class TestDriver {
 public:
  TestDriver(mm_struct* mm, std::size_t units, memory_type type = MEMORY_DEVICE_PRIVATE) : mm_(mm) {
    s_driver = this;
    memory_.resize(units * HPAGE_PMD_SIZE);
    pgmap.type = type;
    pgmap.nr_range = 1;
    pgmap.range = {0, units * HPAGE_PMD_SIZE - 1};
    pgmap.ops = &kOps;
    pgmap.owner = this;
    mapped = memremap_pages(&pgmap, NUMA_NO_NODE);
    first_ = pgmap.range.start / PAGE_SIZE;
    for (std::size_t unit = units; unit-- > 1;) free_units_.push_back(first_ + unit * HPAGE_PMD_NR);
    for (std::size_t i = HPAGE_PMD_NR; i-- > 0;) free_pages_.push_back(first_ + i);
    free_pages_.reserve(units * HPAGE_PMD_NR);  // folio_free() must not allocate
  }
  ~TestDriver() { memunmap_pages(&pgmap); }

  page* alloc(unsigned order) {
    std::unique_lock hold(mutex_);
    std::vector<unsigned long>& list = order == 0 ? free_pages_ : free_units_;
    if (list.empty()) return nullptr;
    page* p = pfn_to_page(list.back());
    list.pop_back();
    hold.unlock();
    return zone_device_page_init(p, &pgmap, order) == 0 ? p : nullptr;
  }
  char* bytes(const page* p) {
    if (void* at = page_address(p); at != nullptr) return static_cast<char*>(at);
    return memory_.data() + (page_to_pfn(p) - first_) * PAGE_SIZE;
  }
  [[nodiscard]] unsigned long select() const {
    return pgmap.type == MEMORY_DEVICE_PRIVATE ? MIGRATE_VMA_SELECT_DEVICE_PRIVATE : MIGRATE_VMA_SELECT_DEVICE_COHERENT;
  }

  // A migration with everything but the steps filled in.
  struct Migration {
    vm_area_struct vma{};
    std::vector<unsigned long> src, dst;
    migrate_vma args{};
  };
  void prepare(Migration& m, unsigned long start, std::size_t pages, unsigned long flags) {
    (void)whimbrel_find_vma(mm_, start, &m.vma);
    m.src.assign(pages, ~0ul);
    m.dst.assign(pages, ~0ul);
    m.args.vma = &m.vma;
    m.args.src = m.src.data();
    m.args.dst = m.dst.data();
    m.args.start = start;
    m.args.end = start + pages * PAGE_SIZE;
    m.args.pgmap_owner = this;
    m.args.flags = flags;
  }
  // Destinations on the device, or in RAM, for everything that migrates; contents copied.
  void fill_destinations(Migration& m, bool to_device, bool allow_huge = true) {
    for (unsigned long i = 0; i < m.args.npages; ++i) {
      const unsigned long word = m.src[i];
      if ((word & MIGRATE_PFN_MIGRATE) == 0) continue;
      const page* from = migrate_pfn_to_page(word);
      if (from == nullptr && !to_device) continue;
      const bool unit = (word & MIGRATE_PFN_COMPOUND) != 0;
      const unsigned long pieces = unit && !allow_huge ? HPAGE_PMD_NR : 1;
      const unsigned order = unit && allow_huge ? HPAGE_PMD_ORDER : 0;
      for (unsigned long k = 0; k < pieces; ++k) {
        page* to = to_device ? alloc(order) : &folio_alloc(GFP_HIGHUSER_MOVABLE, order)->page;
        if (to == nullptr) break;
        if (!to_device) lock_page(to);
        if (from != nullptr) std::memcpy(bytes(to), bytes(from + k), PAGE_SIZE << order);
        else std::memset(bytes(to), 0, PAGE_SIZE << order);
        m.dst[i + k] = migrate_pfn(page_to_pfn(to)) | (order != 0 ? MIGRATE_PFN_COMPOUND : 0);
      }
    }
  }
  static unsigned long migrated(const Migration& m) {
    unsigned long n = 0;
    for (const unsigned long word : m.src) {
      if ((word & MIGRATE_PFN_MIGRATE) != 0) n += (word & MIGRATE_PFN_COMPOUND) != 0 ? HPAGE_PMD_NR : 1;
    }
    return n;
  }
  // Base pages that went; negative: setup failed.
  long to_device(unsigned long start, std::size_t pages, bool compound = true, bool huge = true) {
    Migration m;
    prepare(m, start, pages, MIGRATE_VMA_SELECT_SYSTEM | (compound ? MIGRATE_VMA_SELECT_COMPOUND : 0));
    if (const int error = migrate_vma_setup(&m.args); error != 0) return error;
    fill_destinations(m, true, huge);
    migrate_vma_pages(&m.args);
    const unsigned long n = migrated(m);
    migrate_vma_finalize(&m.args);
    return static_cast<long>(n);
  }
  long to_ram(unsigned long start, std::size_t pages, page* fault_page = nullptr, bool compound = true) {
    Migration m;
    prepare(m, start, pages, select() | (compound ? MIGRATE_VMA_SELECT_COMPOUND : 0));
    m.args.fault_page = fault_page;
    if (const int error = migrate_vma_setup(&m.args); error != 0) return error;
    fill_destinations(m, false);
    migrate_vma_pages(&m.args);
    const unsigned long n = migrated(m);
    migrate_vma_finalize(&m.args);
    return static_cast<long>(n);
  }
  // The frees of pages that a toucher did not wait for.
  unsigned long in_use_settling_at(unsigned long expected) {
    for (int i = 0; i < 2000 && whimbrel_pages_in_use(&pgmap) != expected; ++i) usleep(1000);
    return whimbrel_pages_in_use(&pgmap);
  }

  dev_pagemap pgmap{};
  void* mapped = nullptr;
  std::atomic<vm_fault_t> fault_result{0};
  std::atomic<int> faults{0}, huge_faults{0}, frees{0}, splits{0}, last_splits{0}, out_of_order{0};

 private:
  static vm_fault_t migrate_to_ram(vm_fault* vmf) {
    ++s_driver->faults;
    if (vmf->pte == nullptr) ++s_driver->huge_faults;
    if (s_driver->fault_result != 0) return s_driver->fault_result;
    const bool huge = vmf->pte == nullptr;
    const unsigned long start = vmf->address & ~((huge ? HPAGE_PMD_SIZE : PAGE_SIZE) - 1);
    return s_driver->to_ram(start, huge ? HPAGE_PMD_NR : 1, vmf->page, huge) < 0 ? VM_FAULT_SIGBUS : 0;
  }
  static void folio_free(folio* f) {
    ++s_driver->frees;
    const unsigned order = folio_order(f);
    if (s_driver->pgmap.type == MEMORY_DEVICE_PRIVATE) std::memset(s_driver->bytes(&f->page), 0xdd, PAGE_SIZE << order);
    std::lock_guard hold(s_driver->mutex_);
    (order == 0 ? s_driver->free_pages_ : s_driver->free_units_).push_back(folio_pfn(f));
  }
  static void folio_split(folio* head, folio* tail) {
    if (tail == nullptr) {
      ++s_driver->last_splits;
      return;
    }
    ++s_driver->splits;
    const unsigned long i = folio_pfn(tail) - folio_pfn(head);
    if (i != static_cast<unsigned long>(s_driver->splits) % (HPAGE_PMD_NR - 1) && i != HPAGE_PMD_NR - 1) {
      ++s_driver->out_of_order;
    }
  }
  static inline TestDriver* s_driver = nullptr;  // callbacks have no context but the page; tests use one driver
  static constexpr dev_pagemap_ops kOps{folio_free, migrate_to_ram, folio_split};

  mm_struct* mm_;
  std::vector<char> memory_;
  unsigned long first_ = 0;
  std::mutex mutex_;
  std::vector<unsigned long> free_pages_, free_units_;
};

}  // namespace whimbrel::capi
