#include "linux/beside_faulter.h"

#include <sched.h>
#include <sys/syscall.h>

#include <algorithm>
#include <bit>

#include "linux/sys.h"

namespace whimbrel {
namespace {

// Faults in a row, with no longer gaps than that, before one thread counts as one that faults often.
constexpr std::uint32_t kStreak = 16;
constexpr std::int64_t kLongestGap = 500'000;
// Now and then the scheduler chooses anew: another program may have come to this processor.
constexpr std::uint32_t kFaultsInOnePlace = 32768;

}  // namespace

// ---- ProcessorSet --------------------------------------------------------------------------------------------------

bool ProcessorSet::read(std::uint32_t thread) noexcept {
  const long bytes = sys::call(SYS_sched_getaffinity, thread, sizeof words_, sys::arg(words_.data()));
  if (bytes <= 0) return false;
  words_used_ = static_cast<std::size_t>(bytes) / sizeof words_[0];
  std::fill(words_.begin() + static_cast<std::ptrdiff_t>(words_used_), words_.end(), 0);
  return true;
}

bool ProcessorSet::write(std::uint32_t thread) const noexcept {
  return sys::call(SYS_sched_setaffinity, thread, static_cast<long>(words_used_ * sizeof words_[0]),
                   sys::arg(words_.data())) == 0;
}

bool ProcessorSet::contains(unsigned processor) const noexcept {
  return processor < kMost && (words_[processor / 64] >> (processor % 64) & 1) != 0;
}

std::size_t ProcessorSet::count() const noexcept {
  std::size_t n = 0;
  for (std::size_t i = 0; i < words_used_; ++i) n += static_cast<std::size_t>(std::popcount(words_[i]));
  return n;
}

void ProcessorSet::set_only(unsigned processor) noexcept {
  words_.fill(0);
  words_[processor / 64] = std::uint64_t{1} << (processor % 64);
}

void ProcessorSet::set_all() noexcept {
  std::fill(words_.begin(), words_.begin() + static_cast<std::ptrdiff_t>(words_used_), ~std::uint64_t{0});
}

void ProcessorSet::remove(unsigned processor) noexcept {
  words_[processor / 64] &= ~(std::uint64_t{1} << (processor % 64));
}

// ---- BesideFaulter -------------------------------------------------------------------------------------------------

void KeepsOffFaulter::keep_off(int processor) noexcept {
  if (processor == processor_) return;
  if (processor_ == -1 && !own_.read(0)) return;
  ProcessorSet there = own_;
  if (processor >= 0) there.remove(static_cast<unsigned>(processor));
  if (there.count() == 0) there = own_;
  if (there.write(0)) processor_ = processor;
}

void BesideFaulter::prepare() noexcept {
  able_ = stays_ = false;
  held_ = last_thread_ = streak_ = 0;
  where_.store(-1, std::memory_order_relaxed);
  if (!own_.read(0)) return;
  everything_ = own_;
  everything_.set_all();
  const bool widened = everything_.write(0) && everything_.read(0);
  (void)own_.write(0);
  if (!widened || everything_.count() < 2) return;
  here_ = own_;
  const sched_param lowest{.sched_priority = 1};
  able_ = sys::call(SYS_sched_setscheduler, 0, SCHED_FIFO, sys::arg(&lowest)) == 0;
}

bool BesideFaulter::is_streak(std::uint32_t thread) noexcept {
  const std::int64_t now = clock_->now_ns();
  const bool continues = thread == last_thread_ && now - last_served_ < kLongestGap;
  last_thread_ = thread;
  streak_ = continues ? std::min(streak_ + 1, kStreak) : 0;
  return streak_ == kStreak;
}

bool BesideFaulter::stay() noexcept {
  if (stays_ && ++faults_here_ < kFaultsInOnePlace) return true;
  if (stays_) {
    roam();
    streak_ = 0;
    return false;
  }
  unsigned processor = 0;
  if (sys::call(SYS_getcpu, sys::arg(&processor), 0, 0) != 0 || processor >= ProcessorSet::kMost) return false;
  here_.set_only(processor);
  processor_ = processor;
  faults_here_ = 0;
  stays_ = here_.write(0);
  if (stays_) where_.store(static_cast<int>(processor), std::memory_order_relaxed);
  return stays_;
}

void BesideFaulter::roam() noexcept {
  if (!stays_) return;
  (void)own_.write(0);
  stays_ = false;
  where_.store(-1, std::memory_order_relaxed);
}

bool BesideFaulter::begin(std::uint32_t thread) noexcept {
  if (!able_ || thread == 0) return false;
  if (!is_streak(thread)) {
    roam();
    return false;
  }
  if (!stay() || !held_mask_.read(thread)) return false;
  if (!held_mask_.contains(processor_)) {  // the program has its own idea of where this thread belongs
    roam();
    return false;
  }
  if (held_mask_.count() == 1) return true;
  // What is everything today is given back as "everything", so that the thread goes on following its group of processors.
  if (held_mask_ == everything_) held_mask_.set_all();
  if (!here_.write(thread)) return false;
  held_ = thread;
  return true;
}

void BesideFaulter::end() noexcept {
  if (able_) last_served_ = clock_->now_ns();
  if (held_ == 0) return;
  (void)held_mask_.write(held_);  // refused only when the thread is gone
  held_ = 0;
}

}  // namespace whimbrel
