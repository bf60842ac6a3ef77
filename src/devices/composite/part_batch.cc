#include "devices/composite/part_batch.h"

#include <algorithm>

namespace whimbrel {
namespace {

constexpr std::size_t kPageBytes = 4096;

}  // namespace

// --- parts ----------------------------------------------------------------------------------------------------------

Result<void> Parts::take(std::span<DeviceHandle> devices) noexcept {
  if (devices.empty() || devices.size() > kMostParts) return fail(Errc::kInvalid, 0, "number of parts");
  for (DeviceHandle& device : devices) {
    traits[count] = device->traits();
    if (traits[count].slots > PartWord::kMostSlots) return fail(Errc::kInvalid, 0, "slots of a part");
    handles[count++] = std::move(device);
  }
  return {};
}

std::uint32_t Parts::widest_unit() const noexcept {
  std::uint32_t most = 1;
  for (std::uint32_t i = 0; i < count; ++i) most = std::max(most, traits[i].unit_pages);
  return most;
}

std::uint32_t Parts::run_length(std::span<const PartWord> words) const noexcept {
  const std::uint32_t part = words[0].part();
  const auto slot = static_cast<std::uint64_t>(words[0].slot());
  const std::uint64_t left = traits[part].unit_pages - slot % traits[part].unit_pages;
  std::uint32_t n = 1;
  while (n < words.size() && n < left && words[n] && words[n].part() == part &&
         words[n].slot() == words[0].slot() + n) {
    ++n;
  }
  return n;
}

void Parts::release(std::span<const PartWord> words) const noexcept {
  for (std::size_t i = 0; i < words.size();) {
    if (!words[i]) {
      ++i;
      continue;
    }
    const std::uint32_t n = run_length({words.data() + i, words.size() - i});
    handles[words[i].part()]->release(words[i].slot(), n);
    i += n;
  }
}

void Parts::prepare_fork() noexcept {
  carried_count_ = 0;
  for (std::uint32_t i = 0; i < count; ++i) {
    handles[i]->prepare_fork();
    for (const int fd : handles[i]->carried()) {
      if (carried_count_ < kMostCarried) carried_[carried_count_++] = fd;
    }
  }
}

void Parts::after_fork_in_parent() noexcept {
  carried_count_ = 0;
  for (std::uint32_t i = count; i-- > 0;) handles[i]->after_fork_in_parent();
}

void Parts::after_fork_in_child() noexcept {
  for (std::uint32_t i = count; i-- > 0;) handles[i]->after_fork_in_child();
}

void Parts::settle_in_child() noexcept {
  for (std::uint32_t i = 0; i < count; ++i) handles[i]->settle_in_child();
}

void Parts::drop_carried() noexcept {
  carried_count_ = 0;
  for (std::uint32_t i = 0; i < count; ++i) handles[i]->drop_carried();
}

// --- operations -----------------------------------------------------------------------------------------------------

Result<void> PartBatch::init(MemorySource& source, std::uint32_t parts) noexcept {
  for (std::uint32_t i = 0; i < parts; ++i) {
    ops_[i] = SourceArray<DeviceOp>(source, kMost);
    if (ops_[i].empty()) return fail(Errc::kNoMemory, 0, "operations of parts");
  }
  return {};
}

bool PartBatch::has_room(std::uint32_t more) const noexcept {
  return std::all_of(counts_.begin(), counts_.end(), [more](std::uint32_t n) { return n + more <= kMost; });
}

bool PartBatch::empty() const noexcept {
  return std::all_of(counts_.begin(), counts_.end(), [](std::uint32_t n) { return n == 0; });
}

void PartBatch::add(std::uint32_t part, const DeviceOp& op, std::uint32_t owner) noexcept {
  owners_[part][counts_[part]] = static_cast<std::uint16_t>(owner);
  ops_[part][counts_[part]++] = op;
}

void PartBatch::run(const Parts& parts) noexcept {
  std::array<DeviceBatch, kMostParts> batches{};
  for (std::uint32_t part = 0; part < parts.count; ++part) {
    if (counts_[part] == 0) continue;
    batches[part].ops = {ops_[part].data(), counts_[part]};
    parts[part].submit(batches[part]);
  }
  for (std::uint32_t part = 0; part < parts.count; ++part) {
    if (counts_[part] != 0) parts[part].wait(batches[part]);
  }
}

// --- groups ---------------------------------------------------------------------------------------------------------

PageGroup::Outcome PageGroup::place_on(const Parts& parts, std::uint32_t part, bool shrink_only, bool skip_refused,
                                       PartBatch& batch) noexcept {
  Outcome outcome;
  batch.clear();
  const auto open = [&](std::uint32_t i) { return wanted[i] && !placed[i] && !(skip_refused && refused[i]); };
  for (std::uint32_t i = 0; i < count;) {
    if (!open(i)) {
      ++i;
      continue;
    }
    std::uint32_t n = 1;
    while (n < parts.traits[part].unit_pages && i + n < count && open(i + n) &&
           memory[i + n] == memory[i] + n * kPageBytes) {
      ++n;
    }
    const Result<DeviceSlot> slot = parts[part].reserve(n);
    if (slot) {
      batch.add(
          part,
          {.kind = DeviceOp::Kind::kStore, .first = *slot, .pages = n, .memory = memory[i], .shrink_only = shrink_only},
          i);
    } else {
      outcome.missing += n;
      outcome.error = slot.error();
    }
    i += n;
  }
  if (batch.empty()) return outcome;
  batch.run(parts);
  batch.for_each([&](std::uint32_t, const DeviceOp& op, std::uint32_t first) {
    if (op.result) {
      for (std::uint32_t i = 0; i < op.pages; ++i) placed[first + i] = PartWord(part, op.first + i);
      outcome.placed += op.pages;
      return;
    }
    parts[part].release(op.first, op.pages);
    if (shrink_only && op.result.error().code == Errc::kNotSupported) {
      for (std::uint32_t i = 0; i < op.pages; ++i) refused[first + i] = true;
      return;
    }
    outcome.missing += op.pages;
    outcome.error = op.result.error();
  });
  return outcome;
}

}  // namespace whimbrel
