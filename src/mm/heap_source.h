// A MemorySource on the ordinary heap, for tests and simulations: nothing is ever away there.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "base/memory_source.h"

namespace whimbrel {

class HeapSource final : public MemorySource {
 public:
  // `limit`: bytes in use above which take() fails; 0: none.
  explicit HeapSource(std::size_t limit = 0) noexcept : limit_(limit) {}
  [[nodiscard]] void* take(std::size_t bytes) noexcept override {
    const std::size_t rounded = (bytes + 4095) & ~std::size_t{4095};
    if (limit_ != 0 && used_.load() + rounded > limit_) return nullptr;
    void* memory = std::aligned_alloc(4096, rounded);
    if (memory == nullptr) return nullptr;
    std::memset(memory, 0, rounded);
    used_ += rounded;
    return memory;
  }
  void give(void* memory, std::size_t bytes) noexcept override {
    used_ -= (bytes + 4095) & ~std::size_t{4095};
    std::free(memory);
  }
  [[nodiscard]] std::size_t bytes_in_use() const noexcept override { return used_.load(); }

 private:
  const std::size_t limit_;
  std::atomic<std::size_t> used_{0};
};

}  // namespace whimbrel
