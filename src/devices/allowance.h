// Allowance: how much memory the parts of a device may hold together.
//
// Each part claims before it takes and refunds after it has given back, so the sum never exceeds the limit, not even
// for a moment. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>

namespace whimbrel {

class Allowance {
 public:
  explicit Allowance(std::uint64_t limit_bytes) noexcept : limit_(limit_bytes) {}  // 0: no limit
  Allowance(const Allowance&) = delete;
  Allowance& operator=(const Allowance&) = delete;

  [[nodiscard]] bool claim(std::uint64_t bytes) noexcept {
    std::uint64_t claimed = claimed_.load(std::memory_order_relaxed);
    do {
      if (limit_ != 0 && (bytes > limit_ || claimed > limit_ - bytes)) return false;
    } while (!claimed_.compare_exchange_weak(claimed, claimed + bytes, std::memory_order_relaxed));
    return true;
  }
  void refund(std::uint64_t bytes) noexcept { claimed_.fetch_sub(bytes, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t claimed() const noexcept { return claimed_.load(std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t limit() const noexcept { return limit_; }

 private:
  const std::uint64_t limit_;
  std::atomic<std::uint64_t> claimed_{0};
};

}  // namespace whimbrel
