// bench_file_device SPEC [MIB [BATCH]]: what a device that keeps contents outside memory does by itself, without any
// paging:
//
//   write     stores of whole units in order, BATCH units (16 by default) at a time
//   read      loads of whole units in order, as many at a time
//   random    loads of one whole unit, anywhere, one at a time
//   page      loads of one page, anywhere, one at a time
//
// Contents do not compress. Wall clock; one JSON object on standard output. file_against_fio.py puts it beside fio.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "bench/mapped_memory.h"
#include "devices/device_spec.h"

namespace {

using namespace whimbrel;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kPage = 4096;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

class Bench {
 public:
  Bench(Device& device, std::size_t mib, std::size_t batch)
      : device_(device),
        unit_(device.traits().unit_pages),
        units_((mib << 20) / (unit_ * kPage)),
        batch_(batch),
        buffer_(static_cast<std::byte*>(std::aligned_alloc(kPage, batch * unit_ * kPage))) {
    std::mt19937_64 random(1);
    for (std::size_t i = 0; i < batch * unit_ * kPage; i += 8) {
      const std::uint64_t word = random();
      std::memcpy(buffer_ + i, &word, 8);
    }
  }
  ~Bench() { std::free(buffer_); }

  // MB/s over all units in order.
  double in_order(DeviceOp::Kind kind) {
    const auto start = Clock::now();
    for (std::size_t at = 0; at < units_; at += batch_) {
      std::vector<DeviceOp> ops;
      for (std::size_t i = at; i < std::min(at + batch_, units_); ++i) {
        if (kind == DeviceOp::Kind::kStore) slots_.push_back(device_.reserve(unit_).value());
        std::byte* memory = buffer_ + (i - at) * unit_ * kPage;
        std::memcpy(memory, &i, sizeof i);  // no two units are the same
        ops.push_back({.kind = kind, .first = slots_[i], .pages = unit_, .memory = memory});
      }
      run(ops);
    }
    return static_cast<double>(units_ * unit_ * kPage) / 1e6 / seconds_since(start);
  }
  // Microseconds of each of `count` loads, sorted.
  std::vector<double> anywhere(std::uint32_t pages, std::size_t count) {
    std::mt19937_64 random(2);
    std::vector<double> times;
    for (std::size_t i = 0; i < count; ++i) {
      const DeviceSlot slot = slots_[random() % units_] + (pages == unit_ ? 0 : random() % unit_);
      std::vector<DeviceOp> ops = {{.kind = DeviceOp::Kind::kLoad, .first = slot, .pages = pages, .memory = buffer_}};
      const auto start = Clock::now();
      run(ops);
      times.push_back(seconds_since(start) * 1e6);
    }
    std::sort(times.begin(), times.end());
    return times;
  }
  void release_all() {
    for (const DeviceSlot slot : slots_) device_.release(slot, unit_);
  }
  [[nodiscard]] std::uint32_t unit_pages() const { return unit_; }

 private:
  void run(std::vector<DeviceOp>& ops) {
    DeviceBatch batch{.ops = ops};
    device_.submit(batch);
    device_.wait(batch);
    for (const DeviceOp& op : ops) {
      if (op.result) continue;
      std::fprintf(stderr, "%s: %s\n", op.result.error().where, errc_name(op.result.error().code));
      std::exit(1);
    }
  }

  Device& device_;
  const std::uint32_t unit_;
  const std::size_t units_, batch_;
  std::byte* buffer_;
  std::vector<DeviceSlot> slots_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "bench_file_device SPEC [MIB [BATCH]]\n");
    return 2;
  }
  bench::MappedMemory memory;
  SpecMessage message;
  Result<DeviceHandle> device = make_device(argv[1], {.memory = memory, .kinds = built_in_devices()}, message);
  if (!device) {
    std::fprintf(stderr, "%s\n", message.c_str());
    return 1;
  }
  Bench bench(**device, argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 1024,
              argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 16);
  const double write = bench.in_order(DeviceOp::Kind::kStore);
  const double again = bench.in_order(DeviceOp::Kind::kLoad);
  const std::vector<double> unit = bench.anywhere(bench.unit_pages(), 4000);
  const std::vector<double> page = bench.anywhere(1, 4000);
  bench.release_all();
  const auto at = [](const std::vector<double>& times, double part) {
    return times[static_cast<std::size_t>(part * static_cast<double>(times.size() - 1))];
  };
  std::printf(
      "{\"write_MBs\": %.1f, \"read_MBs\": %.1f, \"random_us\": %.1f, \"random_p99_us\": %.1f, \"page_us\": %.1f, "
      "\"page_p99_us\": %.1f}\n",
      write, again, at(unit, 0.5), at(unit, 0.99), at(page, 0.5), at(page, 0.99));
  return 0;
}
