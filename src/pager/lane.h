// Lane: the working space of one thread inside the pager: the word arrays of one migration and the device operations
// that go with it. Too large for a stack, needed on every path, so each thread that works borrows one.
#pragma once

#include <array>
#include <bitset>
#include <cstddef>
#include <cstdint>

#include "base/mutex.h"
#include "mm/migrate_word.h"
#include "pager/event_ring.h"
#include "pager/kept_copies.h"
#include "pager/page_digest.h"
#include "port/device.h"
#include "port/mmu.h"

namespace whimbrel {

struct Lane {
  static constexpr std::size_t kPages = kPagesPerHuge;  // most pages of one migration

  Mutex mutex;
  MoveCause cause = MoveCause::kEviction;  // of what is done with it now
  std::int64_t begun_ns = 0;               // kFault: when the fault was taken up
  std::array<MigrateWord, kPages> src{};
  std::array<MigrateWord, kPages> dst{};
  std::array<Pfn, kPages> frames{};  // the frame that holds entry i's bytes; 0: none
  std::array<DeviceOp, kPages> ops{};
  std::array<std::uint16_t, kPages> op_entry{};  // first entry of operation k
  std::size_t op_count = 0;
  std::array<PageDigest, kPages> digests{};  // of what was loaded for entry i, where that was asked for
  std::bitset<kPages> keep;  // entries that go straight back
  std::bitset<kPages> clean;  // entries whose contents the device has already
  // Where contents are read out to before they are looked at and stored, kBufferPages at a time.
  static constexpr std::size_t kBufferPages = 64;
  std::byte* buffer = nullptr;                   // page-aligned, of the memory source
  std::array<std::uint8_t, kPages> in_buffer{};  // the page of the buffer that holds entry i's bytes
  std::array<KeptCopy, kBufferPages> copies{};   // of the page at this place of the buffer
  std::array<PageRun, 128> runs{};

  void clear() noexcept {
    op_count = 0;
    keep.reset();
    clean.reset();
    frames.fill(Pfn());
  }
  // Starts and finishes all operations.
  void transfer(Device& device) noexcept {
    if (op_count == 0) return;
    DeviceBatch batch{std::span<DeviceOp>(ops.data(), op_count)};
    device.submit(batch);
    device.wait(batch);
  }
};

}  // namespace whimbrel
