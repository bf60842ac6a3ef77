// The device under the engine, with real pages of this process: they leave, come home by a touch, and all at once when
// the device is evacuated.
#include <sys/mman.h>

#include <cstring>

#include "linux/userfault_mmu.h"
#include "tests/device_kit/device_driver.h"
#include "tests/device_kit/device_suite.h"
#include "tests/live/live_space.h"

namespace whimbrel::testing {
namespace {

constexpr std::size_t kBytes = 256 * kPageSize;

// Why pages of this process cannot be moved here; empty when they can.
std::string cannot_move_pages() {
  Reservation memory;
  if (!memory.open({})) return "no address space";
  UserfaultMmu::Options options;
  options.visibility = Visibility::kShared;
  const Result<UserfaultMmu*> mmu = UserfaultMmu::create(memory, options);
  if (!mmu) return std::string("no userfaultfd here: ") + errc_name(mmu.error().code);
  UserfaultMmu::destroy(*mmu);
  return "";
}

class Region {
 public:
  Region() : at_(reinterpret_cast<std::byte*>(live::map_memory(kHugeSize))) { fill_mixed(1, {at_, kBytes}); }
  ~Region() { ::munmap(at_, kHugeSize); }
  [[nodiscard]] std::byte* at() { return at_; }
  // Pages that do not hold what was written. Touches all of them.
  [[nodiscard]] std::uint64_t wrong() {
    Pages expected(kBytes / kPageSize);
    fill_mixed(1, expected.bytes());
    std::uint64_t count = 0;
    for (std::size_t i = 0; i < expected.count(); ++i) {
      count += std::memcmp(at_ + i * kPageSize, expected.page(i), kPageSize) != 0;
    }
    return count;
  }
  [[nodiscard]] std::uint64_t resident() {
    std::vector<unsigned char> present(kBytes / kPageSize);
    EXPECT_EQ(::mincore(at_, kBytes, present.data()), 0);
    std::uint64_t count = 0;
    for (const unsigned char page : present) count += page & 1;
    return count;
  }

 private:
  std::byte* at_;
};

TEST_P(DeviceSuite, RealPagesLeaveAndComeHomeWhenTouched) {
  if (const std::string why = cannot_move_pages(); !why.empty()) GTEST_SKIP() << why;
  live::LiveSpace live;
  DeviceDriver driver(live.space(), *device_);
  Region region;
  ASSERT_EQ(driver.to_device(region.at(), kBytes), kBytes / kPageSize);
  EXPECT_EQ(region.resident(), 0u);
  EXPECT_EQ(device_->stats().stored_pages, kBytes / kPageSize);
  EXPECT_EQ(region.wrong(), 0u);
  // The one who touched goes on before the last place is given back.
  EXPECT_TRUE(becomes_true([&] { return device_->stats().stored_pages == 0; }))
      << "pages that are home still have a place on the device";
}

TEST_P(DeviceSuite, EvacuationBringsEverythingHome) {
  if (const std::string why = cannot_move_pages(); !why.empty()) GTEST_SKIP() << why;
  live::LiveSpace live;
  DeviceDriver driver(live.space(), *device_);
  Region region;
  ASSERT_EQ(driver.to_device(region.at(), kBytes), kBytes / kPageSize);
  (void)*reinterpret_cast<volatile char*>(region.at() + 7 * kPageSize);  // one is home already
  std::uint64_t home = 0;
  // In pieces: whoever evacuates a large device has no array of its size.
  constexpr std::uint64_t kPiece = 512;
  const std::uint64_t slots = std::min<std::uint64_t>(device_->traits().slots, 64 * kPiece);
  for (std::uint64_t at = 0; at < slots; at += kPiece) {
    home += driver.evacuate(driver.map().first() + PageCount(at), std::min(kPiece, slots - at));
  }
  EXPECT_EQ(home, kBytes / kPageSize - 1);
  EXPECT_TRUE(becomes_true([&] { return device_->stats().stored_pages == 0; }));
  EXPECT_EQ(region.resident(), kBytes / kPageSize) << "home before anybody touched it";
  EXPECT_EQ(region.wrong(), 0u);
}

}  // namespace
}  // namespace whimbrel::testing
