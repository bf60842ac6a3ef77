// A device around another that fails, or holds what comes, when a test says so. For tests of devices made of devices.
#pragma once

#include <atomic>
#include <chrono>
#include <thread>

#include "devices/device_spec.h"
#include "tests/device_kit/device_suite.h"

namespace whimbrel::testing {

class FaultyDevice final : public Device {
 public:
  explicit FaultyDevice(DeviceHandle inner) : inner_(std::move(inner)) {}

  std::atomic<bool> fail_stores{false}, fail_loads{false}, fail_reserves{false};
  std::atomic<Errc> with{Errc::kDeviceIo};
  std::atomic<bool> hold_stores{false}, hold_loads{false};  // they wait until this is false again
  std::atomic<int> held{0};                                 // so many wait now
  std::atomic<int> slow_loads_us{0};
  std::atomic<std::uint64_t> loads{0}, stores{0};  // pages asked for

  [[nodiscard]] Device& inner() { return *inner_; }

  DeviceTraits traits() const noexcept override { return inner_->traits(); }
  DeviceStats stats() const noexcept override { return inner_->stats(); }
  Result<DeviceSlot> reserve(std::uint32_t pages) noexcept override {
    if (fail_reserves) return fail(with, 0, "made to fail");
    return inner_->reserve(pages);
  }
  void release(DeviceSlot first, std::uint32_t pages) noexcept override { inner_->release(first, pages); }
  void submit(DeviceBatch& batch) noexcept override {
    for (DeviceOp& op : batch.ops) {
      const bool is_store = op.kind == DeviceOp::Kind::kStore;
      (is_store ? stores : loads) += op.pages;
      wait_while(is_store ? hold_stores : hold_loads);
      if (!is_store && slow_loads_us != 0) std::this_thread::sleep_for(std::chrono::microseconds(slow_loads_us));
      if (is_store ? fail_stores : fail_loads) {
        op.result = fail(with, 5, "made to fail");
        continue;
      }
      DeviceBatch one{.ops = {&op, 1}};
      inner_->submit(one);
      inner_->wait(one);
    }
  }
  void wait(DeviceBatch&) noexcept override {}
  Result<bool> verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept override {
    return inner_->verify(first, pages, memory);
  }
  bool maintain(std::size_t budget_bytes) noexcept override { return inner_->maintain(budget_bytes); }
  void prepare_fork() noexcept override { inner_->prepare_fork(); }
  void after_fork_in_parent() noexcept override { inner_->after_fork_in_parent(); }
  void after_fork_in_child() noexcept override { inner_->after_fork_in_child(); }
  Error last_error() const noexcept override { return {.code = with, .where = "made to fail"}; }

 private:
  void wait_while(const std::atomic<bool>& on) {
    if (!on) return;
    ++held;
    while (on) std::this_thread::sleep_for(std::chrono::microseconds(100));
    --held;
  }
  DeviceHandle inner_;
};

inline void destroy_faulty(MemorySource& memory, Device* device) noexcept {
  destroy_from(memory, static_cast<FaultyDevice*>(device));
}
inline constexpr DeviceKind kFaultyKind = {
    .name = "faulty", .usage = "", .check = nullptr, .make = nullptr, .destroy = destroy_faulty};

// A device of that specification that can be made to fail; `faulty` names it as long as the handle lives.
inline DeviceHandle make_faulty(MemorySource& memory, const char* spec, FaultyDevice** faulty) {
  SpecMessage message;
  Result<DeviceHandle> inner = make_device(spec, {.memory = memory, .kinds = built_in_devices()}, message);
  EXPECT_TRUE(inner.has_value()) << message.c_str();
  *faulty = make_from<FaultyDevice>(memory, std::move(*inner));
  return DeviceHandle(memory, kFaultyKind, *faulty);
}

}  // namespace whimbrel::testing
