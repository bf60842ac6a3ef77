// fork: the child starts with a copy of every table and of everything on the devices, and with none of the threads.
#include <sys/mman.h>

#include <cstring>

#include "base/check.h"
#include "migrate/exclusive.h"
#include "mirror/protection_lift.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

constexpr std::int64_t kPatienceNs = 5'000'000'000;
constexpr PageRange kEverything{PageIndex(), PageCount(std::uint64_t{1} << (kUserAddressBits - kPageShift))};

}  // namespace

void Session::park_fault_thread() noexcept {
  park_wanted_.store(true);
  mmu_->interrupt();
  for (int tries = 0; !parked_.load() && tries < 1000; ++tries) {
    const std::uint32_t seen = park_changed_.value();
    if (!parked_.load()) park_changed_.wait(seen, 1'000'000);
  }
}

void Session::before_fork() noexcept {
  follow_family();
  gate_.close(kPatienceNs);
  forked_.store(true, std::memory_order_relaxed);
  revoke_all_exclusive(*space_);  // EX-05
  park_fault_thread();
  const std::uint32_t generation = family_->next_generation();
  for (Node* node : nodes_) node->note_shared(generation);
}

void Session::after_fork_in_parent() noexcept {
  space_->note_shared_by_fork();
  {
    MutexLock hold(mutex_);
    for (Mirror* mirror : opens_) {
      // FK-01: one PROTECTION_PAGE bracket over each private mapping; nothing is told apart here.
      if (mirror != nullptr) mirror->forget_range(kEverything);
    }
  }
  park_wanted_.store(false);
  park_changed_.advance();
  gate_.open();
}

void Session::after_fork_in_child() noexcept {
  source_.reset_after_fork();
  mmu_->reset_after_fork();
  mutex_.reset_after_fork();
  following_.reset_after_fork();
  discarder_.reset_after_fork();
  file_copies_.reset_after_fork();
  threads_.store(0);
  protection_mutex().reset_after_fork();
  park_wanted_.store(false);
  parked_.store(false);
  park_changed_.reset_after_fork();
  CHECK(mmu_->reopen_in_child().has_value(), "a forked child gets no userfaultfd: its device pages would read as zeros");
  for (Node* node : nodes_) node->reset_after_fork();
  // FK-01: the child has no subscriptions; the opens it inherited are the parent's.
  ::new (static_cast<void*>(&notifiers_)) NotifierRegistry();
  std::array<PageRange, 1024> watched;
  {
    MutexLock hold(mutex_);
    opens_ = {};
    watched = watched_;
  }
  for (const PageRange& range : watched) {
    if (!range.empty()) watch(range);
  }
  CHECK(space_->recover_in_child() == 0, "memory on a device was touched in a forked child before it could be served");
  space_->note_shared_by_fork();
  gate_.reset_after_fork();
  CHECK(start_fault_thread().has_value(), "no thread in a forked child");
}

void Session::follow_family() noexcept {
  if (!following_.try_lock()) return;
  for (Node* node : nodes_) {
    const auto minor = static_cast<std::size_t>(node->minor());
    const std::uint64_t now = family_->evictions(node->minor()).load();
    if (now == evictions_seen_[minor]) continue;
    evictions_seen_[minor] = now;
    node->evict(false);
  }
  HomeRecord record;
  while (family_->next_home(&home_seen_, &record)) {
    for (Node* node : nodes_) {
      if (node->map().contains(record.first)) node->follow_home(record);
    }
  }
  following_.unlock();
}

}  // namespace whimbrel::mirror
