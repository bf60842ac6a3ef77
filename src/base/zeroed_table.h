// ZeroedTable: a large fixed array that stays untouched until it is used.
//
// Directories are sized for the largest store there may be, but most runs use a corner of them. SourceArray writes
// every element once; this one relies on the source handing out zeroed pages, so pages never used cost no RAM.
#pragma once

#include <cstddef>
#include <type_traits>

#include "base/memory_source.h"

namespace whimbrel {

template <class T>
class ZeroedTable {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>, "must be valid as zero bytes");

 public:
  ZeroedTable(MemorySource& source, std::size_t count) noexcept
      : source_(source), data_(static_cast<T*>(source.take(count * sizeof(T)))), size_(data_ == nullptr ? 0 : count) {}
  ~ZeroedTable() {
    if (data_ != nullptr) source_.give(data_, size_ * sizeof(T));
  }
  ZeroedTable(const ZeroedTable&) = delete;
  ZeroedTable& operator=(const ZeroedTable&) = delete;

  [[nodiscard]] T& operator[](std::size_t i) noexcept { return data_[i]; }
  [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return data_[i]; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }

 private:
  MemorySource& source_;
  T* data_;
  std::size_t size_;
};

}  // namespace whimbrel
