// MappedMemory: where devices under a benchmark get their memory from.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <cstddef>

#include "base/memory_source.h"
#include "mm/address.h"

namespace bench {

// Fresh mappings on huge pages where the kernel gives them, as the real source does it.
class MappedMemory final : public whimbrel::MemorySource {
 public:
  void* take(std::size_t bytes) noexcept override {
    void* memory = ::mmap(nullptr, round(bytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    ::madvise(memory, round(bytes), MADV_HUGEPAGE);
    in_use_ += round(bytes);
    return memory;
  }
  void give(void* memory, std::size_t bytes) noexcept override {
    ::munmap(memory, round(bytes));
    in_use_ -= round(bytes);
  }
  std::size_t bytes_in_use() const noexcept override { return in_use_; }

 private:
  static std::size_t round(std::size_t bytes) { return (bytes + whimbrel::kPageSize - 1) & ~(whimbrel::kPageSize - 1); }
  std::atomic<std::size_t> in_use_{0};
};

}  // namespace bench
