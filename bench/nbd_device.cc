// bench_nbd_device URI [MIB [DEPTH]]: the way to an NBD server through the device process, beside a bare loop over libnbd,
// in one run, with the same server, transfers of 64 KiB and as many under way:
//
//   bare_write, bare_read      libnbd, one connection, DEPTH (16) commands under way, in order: MB/s
//   device_write, device_read  the device nbd:URI, batches of DEPTH units, in order: MB/s
//   hop                        a request that the device process answers by itself: there and back, microseconds (median):
//                              one after the other, and after a pause in which both sides have gone to sleep
//
// Contents do not compress. Wall clock; one JSON object on standard output. The device checks what it reads, bare does not.
#include <libnbd.h>
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "bench/mapped_memory.h"
#include "device_process/launch.h"
#include "devices/ring/ring_device.h"

namespace {

using namespace whimbrel;
using Clock = std::chrono::steady_clock;

constexpr std::size_t kPage = 4096, kUnit = 64 << 10;

[[noreturn]] void give_up(const std::string& why) {
  std::fprintf(stderr, "bench_nbd_device: %s\n", why.c_str());
  std::exit(1);
}

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

std::byte* random_buffer(std::size_t bytes) {
  auto* const out = static_cast<std::byte*>(std::aligned_alloc(kPage, bytes));
  std::mt19937_64 random(1);
  for (std::size_t i = 0; i < bytes; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(out + i, &word, 8);
  }
  return out;
}

// MB/s of libnbd alone.
double bare(const char* uri, bool writing, std::size_t bytes, std::size_t depth, std::byte* buffer) {
  nbd_handle* const handle = nbd_create();
  if (handle == nullptr || nbd_connect_uri(handle, uri) != 0) give_up(nbd_get_error());
  nbd_set_pread_initialize(handle, false);
  nbd_set_strict_mode(handle, 0);
  std::vector<std::size_t> free;
  for (std::size_t i = 0; i < depth; ++i) free.push_back(i);
  struct Slot {
    std::vector<std::size_t>* free;
    std::size_t number;
    bool failed;
  };
  std::vector<Slot> slots;
  for (std::size_t i = 0; i < depth; ++i) slots.push_back({&free, i, false});
  const auto done = [](void* data, int* error) {
    auto* const slot = static_cast<Slot*>(data);
    slot->failed = slot->failed || *error != 0;
    slot->free->push_back(slot->number);
    return 1;
  };
  const auto start = Clock::now();
  for (std::uint64_t at = 0; at < bytes || free.size() < depth;) {
    while (at < bytes && !free.empty()) {
      const std::size_t number = free.back();
      free.pop_back();
      const nbd_completion_callback callback{.callback = done, .user_data = &slots[number], .free = nullptr};
      std::byte* const memory = buffer + number * kUnit;
      const std::uint64_t offset = (std::uint64_t{1} << 20) + at;
      const auto begun = writing ? nbd_aio_pwrite(handle, memory, kUnit, offset, callback, 0)
                                 : nbd_aio_pread(handle, memory, kUnit, offset, callback, 0);
      if (begun < 0) give_up(nbd_get_error());
      at += kUnit;
    }
    if (free.size() < depth && (at >= bytes || free.empty()) && nbd_poll(handle, -1) < 0) give_up(nbd_get_error());
  }
  const double seconds = seconds_since(start);
  if (std::any_of(slots.begin(), slots.end(), [](const Slot& s) { return s.failed; })) give_up("a command failed");
  nbd_shutdown(handle, 0);
  nbd_close(handle);
  return static_cast<double>(bytes) / 1e6 / seconds;
}

double through_device(Device& device, DeviceOp::Kind kind, std::size_t units, std::size_t depth, std::byte* buffer,
                      std::vector<DeviceSlot>& slots) {
  const auto start = Clock::now();
  for (std::size_t at = 0; at < units; at += depth) {
    std::vector<DeviceOp> ops;
    for (std::size_t i = at; i < std::min(at + depth, units); ++i) {
      if (kind == DeviceOp::Kind::kStore) slots.push_back(device.reserve(kUnit / kPage).value());
      ops.push_back({.kind = kind, .first = slots[i], .pages = kUnit / kPage, .memory = buffer + (i - at) * kUnit});
    }
    DeviceBatch batch{.ops = ops};
    device.submit(batch);
    device.wait(batch);
    for (const DeviceOp& op : ops) {
      if (!op.result) give_up(op.result.error().where);
    }
  }
  return static_cast<double>(units * kUnit) / 1e6 / seconds_since(start);
}

double median_hop(RingStore& store, int count, std::chrono::microseconds pause) {
  std::vector<double> times;
  for (int i = 0; i < count; ++i) {
    if (pause.count() != 0) std::this_thread::sleep_for(pause);
    const auto start = Clock::now();
    if (store.ping() != 0) give_up("the device process does not answer");
    times.push_back(seconds_since(start) * 1e6);
  }
  std::nth_element(times.begin(), times.begin() + count / 2, times.end());
  return times[static_cast<std::size_t>(count / 2)];
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "bench_nbd_device URI [MIB [DEPTH]]\n");
    return 2;
  }
  const std::size_t bytes = (argc > 2 ? std::strtoul(argv[2], nullptr, 10) : 512) << 20;
  const std::size_t depth = argc > 3 ? std::strtoul(argv[3], nullptr, 10) : 16;
  std::byte* const buffer = random_buffer(depth * kUnit);
  (void)bare(argv[1], true, bytes, depth, buffer);  // the server has its memory from here on
  const double bare_write = bare(argv[1], true, bytes, depth, buffer), bare_read = bare(argv[1], false, bytes, depth, buffer);

  bench::MappedMemory memory;
  device_process::DeviceProcess process;
  std::string problem, advice;
  if (!process.start(false, &problem, &advice)) give_up(problem + "; " + advice);
  RingHello hello{};
  hello.connections = 4;
  hello.timeout_ms = 60000;
  hello.force = 1;
  std::strcpy(hello.kind, "nbd");
  if (std::strlen(argv[1]) >= sizeof hello.target) give_up("the URI is too long");
  std::strcpy(hello.target, argv[1]);
  SpecMessage message;
  const Result<RingDevice*> device = RingDevice::create(
      memory, process.address().c_str(), hello, {.depth = static_cast<std::uint32_t>(depth)}, message);
  if (!device) give_up(message.c_str());
  std::vector<DeviceSlot> slots;
  const double write = through_device(**device, DeviceOp::Kind::kStore, bytes / kUnit, depth, buffer, slots);
  const double read = through_device(**device, DeviceOp::Kind::kLoad, bytes / kUnit, depth, buffer, slots);
  const double hop = median_hop((*device)->store(), 20000, {});
  const double asleep = median_hop((*device)->store(), 500, std::chrono::microseconds(2000));
  destroy_from(memory, *device);
  std::printf("{\"bare_write_MBs\": %.0f, \"device_write_MBs\": %.0f, \"bare_read_MBs\": %.0f, \"device_read_MBs\": %.0f, "
              "\"hop_us\": %.1f, \"hop_asleep_us\": %.1f}\n",
              bare_write, write, bare_read, read, hop, asleep);
  return 0;
}
