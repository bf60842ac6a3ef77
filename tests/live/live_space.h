// An address space on the real kernel with a fault thread, for tests: engine and program in one process, the descriptor
// usable by every thread.
#pragma once

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>

#include <atomic>
#include <thread>

#include "linux/clock.h"
#include "linux/reservation.h"
#include "linux/userfault_mmu.h"
#include "migrate/fault.h"

namespace whimbrel::live {

class LiveSpace {
 public:
  explicit LiveSpace(HolePolicy* holes = nullptr, AddressSpace::Config config = {}) : holes_(holes) {
    EXPECT_TRUE(source_.open({}).has_value());
    UserfaultMmu::Options options;
    options.visibility = Visibility::kShared;
    mmu_ = UserfaultMmu::create(source_, options).value();
    space_ = AddressSpace::create(*mmu_, source_, clock_, config).value();
    start_fault_thread();
  }
  ~LiveSpace() {
    stop_fault_thread();
    AddressSpace::destroy(space_);
    UserfaultMmu::destroy(mmu_);
  }

  AddressSpace& space() { return *space_; }
  UserfaultMmu& mmu() { return *mmu_; }
  MemorySource& source() { return source_; }

  void start_fault_thread() {
    stop_ = false;
    thread_ = new std::thread([this] {
      FaultService service(*space_, holes_, nullptr);
      while (!stop_) {
        (void)mmu_->wait_for_message(20'000'000);
        (void)service.run_once();
      }
    });
  }
  void stop_fault_thread() {
    if (thread_ == nullptr) return;
    stop_ = true;
    mmu_->interrupt();
    thread_->join();
    delete thread_;
    thread_ = nullptr;
  }
  // In a forked child, first thing: a descriptor of its own, everything away watched again, a fault thread.
  // Returns how many pages were touched too early (0 is right).
  std::uint64_t revive_in_child() {
    source_.reset_after_fork();
    mmu_->reset_after_fork();
    if (!mmu_->reopen_in_child()) return ~std::uint64_t{0};
    const std::uint64_t touched = space_->recover_in_child();
    start_fault_thread();  // the parent's std::thread object is left alone: its thread is not ours
    return touched;
  }

 private:
  HolePolicy* holes_;
  SystemClock clock_;
  Reservation source_;
  UserfaultMmu* mmu_ = nullptr;
  AddressSpace* space_ = nullptr;
  std::thread* thread_ = nullptr;
  std::atomic<bool> stop_{false};
};

// Private anonymous memory at a 2 MiB boundary. huge: ask for huge pages; otherwise refuse them.
inline char* map_memory(std::size_t bytes, bool huge = false) {
  char* raw = static_cast<char*>(mmap(nullptr, bytes + 2 * kHugeSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  char* at = reinterpret_cast<char*>((reinterpret_cast<std::uintptr_t>(raw) + 2 * kHugeSize - 1) & ~(kHugeSize - 1));
  munmap(raw, static_cast<std::size_t>(at - raw));
  munmap(at + bytes, static_cast<std::size_t>(raw + 2 * kHugeSize - at));
  mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  madvise(at, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  return at;
}

}  // namespace whimbrel::live
