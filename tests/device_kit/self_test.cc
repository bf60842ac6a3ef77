// The suite against a device whose operations end late and in reverse order, which is allowed; and, with
// WHIMBREL_DEFECT=name, against the same device with a defect, which must be found.
#include <gtest/gtest.h>

#include <cstdlib>
#include <mutex>
#include <set>
#include <string_view>

#include "devices/ram_device.h"
#include "tests/device_kit/device_suite.h"

namespace whimbrel::testing {
namespace {

bool has_defect(std::string_view name) {
  static const char* const defect = std::getenv("WHIMBREL_DEFECT");
  return defect != nullptr && name == defect;
}

class LateDevice final : public Device {
 public:
  LateDevice(MemorySource& memory, std::uint64_t capacity)
      : memory_(memory),
        capacity_(capacity),
        inner_(RamDevice::create(memory, {.max_units = 4096,
                                          .unit_pages = 16,
                                          .capacity_bytes = has_defect("ignores_capacity") ? 0 : capacity})
                   .value()) {}
  ~LateDevice() override { destroy_from(memory_, inner_); }

  DeviceTraits traits() const noexcept override {
    DeviceTraits traits = inner_->traits();
    traits.name = "late";
    traits.synchronous = false;
    return traits;
  }
  DeviceStats stats() const noexcept override {
    DeviceStats stats = inner_->stats();
    stats.capacity_bytes = capacity_;
    return stats;
  }
  Result<DeviceSlot> reserve(std::uint32_t pages) noexcept override { return inner_->reserve(pages); }
  void release(DeviceSlot first, std::uint32_t pages) noexcept override {
    if (has_defect("keeps_released") && pages == 1) return;
    inner_->release(first, pages);
  }
  void submit(DeviceBatch& batch) noexcept override {
    if (has_defect("lost_batch") && first_ == nullptr) first_ = &batch;
  }
  void wait(DeviceBatch& batch) noexcept override {
    const bool lost = has_defect("lost_batch") && first_ != &batch;
    if (has_defect("lost_batch") && first_ == &batch) first_ = nullptr;
    bool all_good = true;
    for (std::size_t i = batch.ops.size(); i-- > 0 && !lost;) {
      run(batch.ops[i]);
      all_good = all_good && batch.ops[i].result.has_value();
    }
    if (has_defect("spoils_batch") && !all_good) {
      for (DeviceOp& op : batch.ops) op.result = fail(Errc::kDeviceIo);
    }
  }
  Result<bool> verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept override {
    return inner_->verify(first, pages, memory);
  }
  void prepare_fork() noexcept override {
    if (has_defect("load_waits_for_fork")) loads_.lock();
    if (!has_defect("store_ignores_fork")) inner_->prepare_fork();
  }
  void after_fork_in_parent() noexcept override {
    if (has_defect("load_waits_for_fork")) loads_.unlock();
    if (!has_defect("store_ignores_fork")) inner_->after_fork_in_parent();
  }
  void after_fork_in_child() noexcept override {
    new (&mutex_) std::mutex;
    inner_->after_fork_in_child();
  }

 private:
  void run(DeviceOp& op) noexcept {
    if (op.kind == DeviceOp::Kind::kStore && has_defect("store_fails_silently")) {
      const std::lock_guard lock(mutex_);
      if (!stored_.insert(static_cast<std::uint64_t>(op.first)).second) {
        op.result = {};
        return;
      }
    }
    if (op.kind == DeviceOp::Kind::kLoad && has_defect("load_waits_for_fork")) {
      loads_.lock();
      loads_.unlock();
    }
    DeviceBatch one{.ops = {&op, 1}};
    inner_->submit(one);
    inner_->wait(one);
    if (op.kind != DeviceOp::Kind::kLoad || !op.result) return;
    if (has_defect("wrong_byte")) op.memory[op.pages * kPageBytes - 1] ^= std::byte{1};
    if (has_defect("writes_beyond")) op.memory[op.pages * kPageBytes] = std::byte{0};
  }

  MemorySource& memory_;
  const std::uint64_t capacity_;
  RamDevice* inner_;
  DeviceBatch* first_ = nullptr;  // for one defect, tested by one thread
  std::mutex mutex_, loads_;
  std::set<std::uint64_t> stored_;
};

DeviceUnderTest late() {
  return {.name = "late",
          .make =
              [](MemorySource& memory, std::uint64_t capacity) {
                return DevicePtr(new LateDevice(memory, capacity), [](Device* device) { delete device; });
              },
          .leftovers = [] { return std::string(has_defect("leaves_something") ? "a file" : ""); }};
}

INSTANTIATE_TEST_SUITE_P(Late, DeviceSuite, ::testing::Values(late()), device_name);

}  // namespace
}  // namespace whimbrel::testing
