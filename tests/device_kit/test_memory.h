// A MemorySource for tests: fresh mappings, with a limit and a record of every block.
//
// It checks what a real source relies on: each block is given back once, with the size it was taken with. A block that
// is never given back shows in bytes_in_use(); one that is used after it was given back ends the test by a signal.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <limits>
#include <map>
#include <mutex>
#include <vector>

#include "base/check.h"
#include "base/memory_source.h"

namespace whimbrel::testing {

class TestMemory final : public MemorySource {
 public:
  explicit TestMemory(std::size_t limit = std::numeric_limits<std::size_t>::max()) : limit_(limit) {}
  ~TestMemory() override {
    for (const auto& [memory, bytes] : blocks_) ::munmap(memory, bytes);
  }
  TestMemory(const TestMemory&) = delete;
  TestMemory& operator=(const TestMemory&) = delete;

  [[nodiscard]] void* take(std::size_t bytes) noexcept override {
    bytes = (bytes + 4095) & ~std::size_t{4095};
    const std::lock_guard lock(mutex_);
    if (bytes > limit_ - in_use_) return nullptr;
    void* memory = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    blocks_[memory] = bytes;
    in_use_ += bytes;
    return memory;
  }

  void give(void* memory, std::size_t bytes) noexcept override {
    bytes = (bytes + 4095) & ~std::size_t{4095};
    const std::lock_guard lock(mutex_);
    const auto block = blocks_.find(memory);
    CHECK(block != blocks_.end(), "gave back what was not taken");
    CHECK(block->second == bytes, "gave back another size than was taken");
    if (on_give_ != nullptr) on_give_(static_cast<const std::byte*>(memory), bytes);
    blocks_.erase(block);
    in_use_ -= bytes;
    ::munmap(memory, bytes);
  }

  [[nodiscard]] std::size_t bytes_in_use() const noexcept override {
    const std::lock_guard lock(mutex_);
    return in_use_;
  }

  void set_limit(std::size_t limit) {
    const std::lock_guard lock(mutex_);
    limit_ = limit < in_use_ ? in_use_ : limit;
  }
  // Called with every block that comes back, before it is freed.
  void set_on_give(void (*on_give)(const std::byte*, std::size_t)) { on_give_ = on_give; }

  struct Block {
    std::byte* memory;
    std::size_t bytes;
  };
  [[nodiscard]] std::vector<Block> blocks() const {
    const std::lock_guard lock(mutex_);
    std::vector<Block> result;
    for (const auto& [memory, bytes] : blocks_) result.push_back({static_cast<std::byte*>(memory), bytes});
    return result;
  }

 private:
  mutable std::mutex mutex_;
  std::map<void*, std::size_t> blocks_;
  std::size_t limit_;
  std::size_t in_use_ = 0;
  void (*on_give_)(const std::byte*, std::size_t) = nullptr;
};

}  // namespace whimbrel::testing
