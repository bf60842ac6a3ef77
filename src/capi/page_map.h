// A driver's dev_pagemap as the engine's PageMapOps: calls go to the driver's callbacks, in his words. Also keeps his word
// for each page (zone_device_data).
#pragma once

#include <atomic>

#include "capi/capi.h"

namespace whimbrel::capi {

class DriverPageMap final : public PageMapOps {
 public:
  DriverPageMap(dev_pagemap& pgmap, MemorySource& source, PageCount count) noexcept
      : pgmap_(pgmap), source_(source), chunks_(source, (count.raw() + kChunk - 1) / kChunk) {}
  ~DriverPageMap() override;
  [[nodiscard]] bool usable() const noexcept { return !chunks_.empty(); }

  [[nodiscard]] dev_pagemap& pgmap() noexcept { return pgmap_; }
  [[nodiscard]] PageMap& map() noexcept { return *map_; }
  void set_map(PageMap* map) noexcept { map_ = map; }

  // Teardown has begun: no new pages.
  void close() noexcept { closed_.store(true, std::memory_order_release); }
  [[nodiscard]] bool is_closed() const noexcept { return closed_.load(std::memory_order_acquire); }

  [[nodiscard]] void* data(Pfn pfn) noexcept;
  // False: no memory.
  [[nodiscard]] bool set_data(Pfn pfn, void* data) noexcept;

  FaultResult migrate_to_ram(FaultContext& fault) noexcept override;
  void folio_free(Pfn head, unsigned order) noexcept override;
  void folio_split(Pfn head, Pfn piece) noexcept override;

 private:
  static constexpr std::uint64_t kChunk = 4096;
  using Word = std::atomic<void*>;

  dev_pagemap& pgmap_;
  MemorySource& source_;
  PageMap* map_ = nullptr;
  std::atomic<bool> closed_{false};
  SourceArray<std::atomic<Word*>> chunks_;
};

// The driver's page map that a page belongs to; null: RAM.
[[nodiscard]] DriverPageMap* page_map_of(AddressSpace& space, Pfn pfn) noexcept;

}  // namespace whimbrel::capi
