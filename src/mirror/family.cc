#include "mirror/family.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include <new>

#include "base/syscall.h"

namespace whimbrel::mirror {

Result<Family*> Family::create() noexcept {
  const long at = sys::call(SYS_mmap, 0, sizeof(Family), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at < 0 && at > -4096) return fail(Errc::kNoMemory, static_cast<int>(-at), "memory shared with forked processes");
  return ::new (reinterpret_cast<void*>(at)) Family();
}

OpenFlags* Family::take_flags() noexcept {
  for (OpenFlags& flags : flags_) {
    std::uint32_t free = 0;
    if (!flags.used.compare_exchange_strong(free, 1)) continue;
    flags.value.store(0);
    return &flags;
  }
  return nullptr;
}

void Family::give_flags(OpenFlags* flags) noexcept {
  if (flags == nullptr) return;
  flags->value.store(0);
  flags->used.store(0);
}

void Family::add_home(HomeRecord record) noexcept {
  const std::uint64_t position = home_next_.fetch_add(1, std::memory_order_acq_rel);
  Home& home = home_[position % kHome];
  home.stamp.store(0, std::memory_order_release);
  home.generation.store(record.generation, std::memory_order_relaxed);
  home.first.store(record.first.raw(), std::memory_order_relaxed);
  home.count.store(record.count.raw(), std::memory_order_relaxed);
  home.stamp.store(position + 1, std::memory_order_release);
}

bool Family::next_home(std::uint64_t* position, HomeRecord* out) const noexcept {
  const std::uint64_t end = home_end();
  if (end > kHome && *position < end - kHome) *position = end - kHome;
  if (*position >= end) return false;
  const Home& home = home_[*position % kHome];
  if (home.stamp.load(std::memory_order_acquire) != *position + 1) return false;
  *out = {static_cast<std::uint32_t>(home.generation.load(std::memory_order_relaxed)),
          Pfn(home.first.load(std::memory_order_relaxed)), PageCount(home.count.load(std::memory_order_relaxed))};
  ++*position;
  return true;
}

}  // namespace whimbrel::mirror
