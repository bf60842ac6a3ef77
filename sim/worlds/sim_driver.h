// SimDriver: a device driver on the engine's protocol, with contents in a simulated device. It does what drivers may do
// and fails as they do: no room, transfers that fail, small pages where a huge one was collected.
//
// A store that fails leaves the page where it was. A load that fails gives SIGBUS to the toucher; the contents stay on
// the device and the next touch may succeed.
#pragma once

#include <map>
#include <vector>

#include "migrate/fault.h"
#include "migrate/migrate_vma.h"
#include "sim/sim_device.h"

namespace whimbrel::sim {

class SimDriver final : public PageMapOps {
 public:
  SimDriver(AddressSpace& space, SimDevice& device, Choices& choices, std::uint64_t pages);

  enum class Holes : std::uint8_t { kLeave, kPopulate };
  // Each returns the number of pages that moved. The range must lie in one mapping, else nothing moves.
  std::uint64_t to_device(PageRange range, bool compound, Holes holes);
  std::uint64_t to_ram(PageRange range, bool compound, Pfn fault_page = Pfn());
  // By frame number, all that are in use, whoever maps them.
  std::uint64_t evict_frames();

  [[nodiscard]] FaultResult migrate_to_ram(FaultContext& fault) noexcept override;
  void folio_free(Pfn head, unsigned order) noexcept override;
  void folio_split(Pfn head, Pfn piece) noexcept override;
  [[nodiscard]] bool serves_inline() const noexcept override { return true; }

  [[nodiscard]] PageMap& map() { return *map_; }
  // The driver itself runs short once in a while, also of what it needs for huge pages.
  void set_scarce(bool scarce) { scarce_ = scarce; }
  // Load errors met since the start: the only reason for SIGBUS.
  [[nodiscard]] std::uint64_t failed_loads() const { return failed_loads_; }

 private:
  struct Arrays {
    explicit Arrays(std::uint64_t n) : src(n), dst(n) {}
    std::vector<MigrateWord> src, dst;
  };
  [[nodiscard]] Result<Pfn> allocate(unsigned order);
  [[nodiscard]] bool store(Pfn to, const std::byte* from, std::uint64_t pages);
  [[nodiscard]] bool load(Pfn from, std::byte* to, std::uint64_t pages);
  [[nodiscard]] bool transfer(DeviceOp::Kind kind, Pfn pfn, std::byte* memory, std::uint64_t pages);
  void fill_out(MigrateVma& args, Arrays& words);
  void fill_out_small(Arrays& words, std::uint64_t i, const std::byte* from);
  void fill_home(MigrateVma& args, Arrays& words);
  void fill_home_word(MigrateWord source, MigrateWord* dst, std::uint64_t left);
  void give_back(Pfn pfn, unsigned order);
  [[nodiscard]] std::uint64_t index(Pfn pfn) const { return (pfn - map_->first()).raw(); }
  [[nodiscard]] bool short_of_something() { return scarce_ && choices_.pick_rarely(2, 16) != 0; }

  AddressSpace& space_;
  SimDevice& device_;
  Choices& choices_;
  PageMap* map_;
  const std::uint64_t pages_;
  bool scarce_ = false;
  std::uint64_t failed_loads_ = 0;
  std::map<std::uint64_t, DeviceSlot> slots_;  // by page number: allocated pages
  std::uint64_t next_ = 0;
};

}  // namespace whimbrel::sim
