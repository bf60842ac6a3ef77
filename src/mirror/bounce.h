// A buffer outside the program's view, for data on its way between device and caller.
#pragma once

#include <sys/mman.h>

#include <cstddef>

#include "linux/sys.h"

namespace whimbrel::mirror {

class Bounce {
 public:
  explicit Bounce(std::size_t bytes) noexcept : bytes_(bytes) {
    const Result<void*> memory = sys::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
    data_ = memory ? static_cast<std::byte*>(*memory) : nullptr;
  }
  ~Bounce() {
    if (data_ != nullptr) sys::munmap(data_, bytes_);
  }
  Bounce(const Bounce&) = delete;
  Bounce& operator=(const Bounce&) = delete;
  [[nodiscard]] std::byte* data() const noexcept { return data_; }

 private:
  const std::size_t bytes_;
  std::byte* data_ = nullptr;
};

}  // namespace whimbrel::mirror
