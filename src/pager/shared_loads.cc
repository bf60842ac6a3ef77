#include "pager/shared_loads.h"

#include <algorithm>

#include "pager/pager_core.h"

namespace whimbrel {
namespace {

// Below this the other thread has hardly woken up when all is done.
constexpr std::size_t kWorthPages = 64;
// One slice: some hundred microseconds of decoding, and not so many that the end is waited for.
constexpr std::uint32_t kSlicePages = 32;
constexpr int kSpins = 4000;  // about as long as a short sleep takes
constexpr std::int64_t kPause = 20'000;

constexpr unsigned kNextShift = 16;
constexpr unsigned kBatchShift = 32;
constexpr std::uint64_t kField = 0xffff;
static_assert(Lane::kPages <= kField);

void relax() noexcept {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

void SharedLoads::transfer(Lane& lane, bool digests) noexcept {
  std::size_t pages = 0;
  for (std::size_t k = 0; k < lane.op_count; ++k) pages += lane.ops[k].pages;
  if (&lane != core_.lanes[0] || pages < kWorthPages || !core_.synchronous.load(std::memory_order_relaxed)) return run(lane, 0, lane.op_count, digests);
  const auto count = static_cast<std::uint32_t>(lane.op_count);
  done_.store(0, std::memory_order_relaxed);
  digests_.store(digests, std::memory_order_relaxed);
  left_.store(std::uint64_t{++batch_} << kBatchShift | count, std::memory_order_release);
  core_.kick();
  while (do_slice() != 0) {
  }
  for (int spin = 0; done_.load(std::memory_order_acquire) != count; ++spin) {
    if (spin < kSpins) relax();
    else core_.space.clock().sleep_ns(kPause);
  }
}

bool SharedLoads::help() noexcept {
  std::size_t pages = 0;
  while (const std::size_t more = do_slice()) pages += more;
  if (pages == 0) return false;
  core_.stats->helped_pages.fetch_add(pages, std::memory_order_relaxed);
  return true;
}

std::size_t SharedLoads::do_slice() noexcept {
  std::uint64_t seen = left_.load(std::memory_order_acquire);
  std::uint64_t first = 0, end = 0;
  do {
    const std::uint64_t count = seen & kField;
    first = seen >> kNextShift & kField;
    if (first >= count) return 0;
    // The operations are not looked at before the slice is ours: a batch that is over may be rebuilt meanwhile.
    end = std::min(count, first + std::max<std::uint64_t>(kSlicePages / core_.unit_pages.load(std::memory_order_relaxed), 1));
  } while (!left_.compare_exchange_weak(seen, seen + ((end - first) << kNextShift), std::memory_order_acq_rel,
                                        std::memory_order_acquire));
  Lane& lane = *core_.lanes[0];
  run(lane, first, end, digests_.load(std::memory_order_relaxed));
  std::size_t pages = 0;
  for (std::size_t k = first; k < end; ++k) pages += lane.ops[k].pages;
  done_.fetch_add(static_cast<std::uint32_t>(end - first), std::memory_order_release);
  return pages;
}

void SharedLoads::run(Lane& lane, std::size_t first, std::size_t end, bool digests) noexcept {
  if (first == end) return;
  DeviceBatch batch{std::span<DeviceOp>(lane.ops.data() + first, end - first)};
  core_.device.submit(batch);
  core_.device.wait(batch);
  if (!digests) return;
  for (std::size_t k = first; k < end; ++k) {
    const DeviceOp& op = lane.ops[k];
    if (!op.result) continue;
    for (std::size_t j = 0; j < op.pages; ++j) lane.digests[lane.op_entry[k] + j] = core_.digest(op.memory + j * kPageSize);
  }
}

void SharedLoads::reset_in_child() noexcept {
  left_.store(0, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
}

}  // namespace whimbrel
