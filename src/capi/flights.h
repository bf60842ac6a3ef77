// Flights: the migrations between setup and finalize, by their src array. The C structures have no room for what the
// engine must know of them: whether the pages step has run (PR-04), and whether a fork has to wait for them.
//
// Thread-safe, without a lock; one migration is used by one thread at a time.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

namespace whimbrel::capi {

class Flight {
 public:
  bool paged = false;  // the pages step has run
  // Kernel id of the thread that began it, if it holds the gate; 0: it does not. Read by forking threads.
  std::atomic<int> outbound_thread{0};

 private:
  friend class Flights;
  std::atomic<const void*> key_{nullptr};
};

class Flights {
 public:
  // Null: too many. `src` is not in flight.
  [[nodiscard]] Flight* begin(const void* src) noexcept {
    for (std::size_t i = 0; i < kMost; ++i) {
      Flight& flight = flights_[(start(src) + i) % kMost];
      const void* expected = nullptr;
      if (!flight.key_.compare_exchange_strong(expected, src, std::memory_order_acq_rel)) continue;
      count_.fetch_add(1, std::memory_order_acq_rel);
      flight.paged = false;
      return &flight;
    }
    return nullptr;
  }
  // Null: not in flight.
  [[nodiscard]] Flight* find(const void* src) noexcept {
    for (std::size_t i = 0; i < kMost; ++i) {
      Flight& flight = flights_[(start(src) + i) % kMost];
      if (flight.key_.load(std::memory_order_acquire) == src) return &flight;
    }
    return nullptr;
  }
  void end(Flight* flight) noexcept {
    flight->outbound_thread.store(0, std::memory_order_release);
    flight->key_.store(nullptr, std::memory_order_release);
    count_.fetch_sub(1, std::memory_order_acq_rel);
  }
  [[nodiscard]] unsigned count() const noexcept { return count_.load(std::memory_order_acquire); }
  // Whether the thread has one that takes pages out of the program.
  [[nodiscard]] bool has_outbound_of(int thread) const noexcept {
    for (const Flight& flight : flights_) {
      if (flight.outbound_thread.load(std::memory_order_acquire) == thread) return true;
    }
    return false;
  }

 private:
  static constexpr std::size_t kMost = 256;
  static std::size_t start(const void* src) noexcept {
    return static_cast<std::size_t>((reinterpret_cast<std::uintptr_t>(src) >> 3) * 0x9e3779b97f4a7c15u >> 56);
  }
  std::array<Flight, kMost> flights_{};
  std::atomic<unsigned> count_{0};
};

}  // namespace whimbrel::capi
