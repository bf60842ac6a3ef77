// A piece of anonymous memory as any program would map it, given back on destruction.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace bench {

class Region {
 public:
  // Throws std::runtime_error when the kernel refuses. `huge` asks for transparent huge pages.
  explicit Region(std::size_t bytes, bool huge = false) : bytes_(bytes) {
    memory_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory_ == MAP_FAILED) throw std::runtime_error("cannot map " + std::to_string(bytes) + " bytes");
    if (huge) madvise(memory_, bytes, MADV_HUGEPAGE);
  }
  Region(const Region&) = delete;
  Region& operator=(const Region&) = delete;
  Region(Region&& other) noexcept : memory_(std::exchange(other.memory_, nullptr)), bytes_(other.bytes_) {}
  Region& operator=(Region&&) = delete;
  ~Region() {
    if (memory_ != nullptr) munmap(memory_, bytes_);
  }

  template <class T>
  [[nodiscard]] T* as() const {
    return static_cast<T*>(memory_);
  }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }

 private:
  void* memory_;
  std::size_t bytes_;
};

}  // namespace bench
