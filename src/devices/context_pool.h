// ContextPool: a fixed number of worker contexts, lent to one thread at a time.
//
// Codec contexts are too large for stacks and must not be allocated on the fault path, so they exist from the start.
// Who finds none free waits; contexts are held for microseconds. Up to 64.
//
// Thread-safe.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>

#include "base/memory_source.h"
#include "base/mutex.h"

namespace whimbrel {

template <class T>
class ContextPool {
 public:
  ContextPool(MemorySource& source, std::uint32_t count) noexcept
      : contexts_(source, count < 64 ? count : 64),
        free_(contexts_.size() == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << contexts_.size()) - 1) {}

  // Borrowed for the length of a scope.
  class Lease {
   public:
    explicit Lease(ContextPool& pool) noexcept : pool_(pool), index_(pool.take()) {}
    ~Lease() { pool_.give(index_); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    T* operator->() const noexcept { return &pool_.contexts_[index_]; }
    T& operator*() const noexcept { return pool_.contexts_[index_]; }

   private:
    ContextPool& pool_;
    std::uint32_t index_;
  };

  [[nodiscard]] bool empty() const noexcept { return contexts_.empty(); }
  // In a forked child: those who had borrowed do not exist there.
  void reset_in_child() noexcept {
    const std::size_t count = contexts_.size();
    free_.store(count == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1);
    waiting_.store(0);
    given_.reset_after_fork();
  }
  // For set-up, before anything is lent.
  [[nodiscard]] T* begin() noexcept { return contexts_.begin(); }
  [[nodiscard]] T* end() noexcept { return contexts_.end(); }

 private:
  [[nodiscard]] std::uint32_t take() noexcept {
    std::uint64_t free = free_.load(std::memory_order_relaxed);
    for (;;) {
      if (free == 0) {
        // Announce first, look again, then sleep: a context given back in between advances the event.
        waiting_.fetch_add(1);
        const std::uint32_t seen = given_.value();
        if (free_.load() == 0) given_.wait(seen);
        waiting_.fetch_sub(1);
        free = free_.load();
        continue;
      }
      if (free_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire, std::memory_order_relaxed)) {
        return static_cast<std::uint32_t>(std::countr_zero(free));
      }
    }
  }
  void give(std::uint32_t index) noexcept {
    free_.fetch_or(std::uint64_t{1} << index);
    if (waiting_.load() != 0) given_.advance();
  }

  SourceArray<T> contexts_;
  std::atomic<std::uint64_t> free_;  // a set bit is a context that nobody has
  std::atomic<std::uint32_t> waiting_{0};
  Event given_;
};

}  // namespace whimbrel
