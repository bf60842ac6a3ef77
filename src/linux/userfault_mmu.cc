#include "linux/userfault_mmu.h"

#include "base/check.h"
#include "linux/sys.h"
#include "linux/uapi.h"

namespace whimbrel {

Result<UserfaultMmu*> UserfaultMmu::create(MemorySource& memory, const Options& options) noexcept {
  void* const place = memory.take(sizeof(UserfaultMmu));
  if (place == nullptr) return fail(Errc::kNoMemory, 0, "memory for the page-table driver");
  auto* const mmu = ::new (place) UserfaultMmu(memory, options);
  const Result<void> opened = mmu->open();
  if (!opened) {
    destroy(mmu);
    return std::unexpected(opened.error());
  }
  return mmu;
}

void UserfaultMmu::destroy(UserfaultMmu* mmu) noexcept {
  if (mmu == nullptr) return;
  MemorySource& memory = mmu->memory_;
  mmu->~UserfaultMmu();
  memory.give(mmu, sizeof(UserfaultMmu));
}

UserfaultMmu::~UserfaultMmu() { fds_.close(); }

Result<void> UserfaultMmu::open() noexcept {
  const Result<void> windows = windows_.reserve(memory_, options_.window_bytes);
  if (!windows) return windows;
  const DescriptorRoom room;
  const Ladder ladder = climb(
      options_.request, {.allow_user_mode_only = options_.allow_user_mode_only, .require_move = options_.require_move});
  if (ladder.chosen < 0) return std::unexpected(ladder.first_failure);
  const Rung rung = kRungs[ladder.chosen];
  const Proof& proof = ladder.proofs[ladder.chosen];
  // The proof used a descriptor of its own, since the handshake cannot be repeated and its scratch range is gone.
  const Result<Userfault> userfault = open_userfault(rung, options_.request);
  if (!userfault) return std::unexpected(userfault.error());
  abilities_.kernel_faults = proof.kernel_faults;
  abilities_.move = proof.move;
  abilities_.write_protect = proof.write_protect;
  abilities_.poison = proof.poison;
  return adopt(rung, *userfault);
}

// Takes a working descriptor and opens the others beside it.
Result<void> UserfaultMmu::adopt(Rung rung, const Userfault& userfault) noexcept {
  rung_ = rung;
  abilities_.thread_id = (userfault.features & uapi::kFeatureThreadId) != 0;
  abilities_.fork_event = (userfault.features & uapi::kFeatureEventFork) != 0;
  async_write_protect_ = (userfault.features & uapi::kFeatureWpAsync) != 0;
  return fds_.open(userfault.fd, options_.visibility);
}

void UserfaultMmu::reset_after_fork() noexcept {
  windows_.reset_after_fork();
  smaps_mutex_.reset_after_fork();
  watched_part_ = {};
}

Result<void> UserfaultMmu::reopen_in_child() noexcept {
  fds_.forget_inherited(options_.visibility);
  interrupted_.store(false, std::memory_order_relaxed);
  const DescriptorRoom room;
  Error last{};
  // Not proved again: the kernel is the same. What may have changed are this process's rights, and those only decide
  // which rung opens.
  for (const Rung rung : kRungs) {
    if (rung < rung_ || (rung == Rung::kUserModeOnly && !options_.allow_user_mode_only)) continue;
    const Result<Userfault> userfault = open_userfault(rung, options_.request);
    if (userfault) {
      if (rung == Rung::kUserModeOnly) abilities_.kernel_faults = false;
      return adopt(rung, *userfault);
    }
    last = userfault.error();
  }
  return std::unexpected(last);
}

Result<PageRange> UserfaultMmu::open_window(PageCount count, WindowKind kind) noexcept {
  return windows_.open(count, kind);
}

void UserfaultMmu::close_window(PageRange window) noexcept { windows_.close(window); }

std::byte* UserfaultMmu::bytes(PageIndex window_page) noexcept {
  DCHECK(windows_.contains(window_page), "bytes() is for windows");
  return reinterpret_cast<std::byte*>(window_page.address().raw());
}

}  // namespace whimbrel
