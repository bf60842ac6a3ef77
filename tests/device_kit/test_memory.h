// A MemorySource for tests: fresh mappings, with a limit and a record of every block.
//
// It checks what a real source relies on: each block is given back once, with the size it was taken with. A block that
// is never given back shows in bytes_in_use(); one that is used after it was given back ends the test by a signal.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <mutex>
#include <vector>

#include "base/check.h"
#include "base/memory_source.h"

namespace whimbrel::testing {

class TestMemory final : public MemorySource {
 public:
  explicit TestMemory(std::size_t limit = std::numeric_limits<std::size_t>::max()) : limit_(limit) {}
  ~TestMemory() override {
    while (first_ != nullptr) {
      Header* header = first_;
      first_ = header->next;
      ::munmap(header, header->bytes + kPage);
    }
  }
  TestMemory(const TestMemory&) = delete;
  TestMemory& operator=(const TestMemory&) = delete;

  [[nodiscard]] void* take(std::size_t bytes) noexcept override {
    bytes = (bytes + kPage - 1) & ~(kPage - 1);
    const std::lock_guard lock(mutex_);
    if (bytes > limit_ - in_use_) return nullptr;
    void* memory = ::mmap(nullptr, bytes + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    auto* header = static_cast<Header*>(memory);
    *header = {.magic = kMagic, .bytes = bytes, .next = first_, .previous = nullptr};
    if (first_ != nullptr) first_->previous = header;
    first_ = header;
    in_use_ += bytes;
    return static_cast<std::byte*>(memory) + kPage;
  }

  void give(void* memory, std::size_t bytes) noexcept override {
    bytes = (bytes + kPage - 1) & ~(kPage - 1);
    const std::lock_guard lock(mutex_);
    auto* header = reinterpret_cast<Header*>(static_cast<std::byte*>(memory) - kPage);
    CHECK(header->magic == kMagic, "gave back what was not taken");
    CHECK(header->bytes == bytes, "gave back another size than was taken");
    if (on_give_ != nullptr) on_give_(static_cast<const std::byte*>(memory), bytes);
    (header->previous != nullptr ? header->previous->next : first_) = header->next;
    if (header->next != nullptr) header->next->previous = header->previous;
    in_use_ -= bytes;
    ::munmap(header, bytes + kPage);
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
  // In the order in which they were taken.
  [[nodiscard]] std::vector<Block> blocks() const {
    const std::lock_guard lock(mutex_);
    std::vector<Block> result;
    for (Header* header = first_; header != nullptr; header = header->next) {
      result.push_back({reinterpret_cast<std::byte*>(header) + kPage, header->bytes});
    }
    std::reverse(result.begin(), result.end());
    return result;
  }

 private:
  // On a page of its own before each block, so that nothing is allocated here: a child of a process with several
  // threads may use this, even under a sanitizer whose heap does not survive such a fork.
  struct Header {
    std::uint64_t magic;
    std::size_t bytes;
    Header* next;
    Header* previous;
  };
  static constexpr std::size_t kPage = 4096;
  static constexpr std::uint64_t kMagic = 0x7465737470616765;

  mutable std::mutex mutex_;
  Header* first_ = nullptr;
  std::size_t limit_;
  std::size_t in_use_ = 0;
  void (*on_give_)(const std::byte*, std::size_t) = nullptr;
};

}  // namespace whimbrel::testing
