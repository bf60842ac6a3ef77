// Where the engine's own memory comes from: whole pages, zeroed, never from the program's allocator.
//
// The engine serves faults for threads that may hold any lock of the program's malloc, and its own data must never be
// on a page that can be away. So every table and buffer is built on a MemorySource; linux/ provides one over a private
// reservation, tests use the heap.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>

namespace whimbrel {

class MemorySource {
 public:
  virtual ~MemorySource() = default;
  // Zeroed memory, page aligned, `bytes` rounded up to whole pages; nullptr when the source is used up. Thread-safe.
  [[nodiscard]] virtual void* take(std::size_t bytes) noexcept = 0;
  // Gives back exactly what one take() returned, with the same size. Thread-safe.
  virtual void give(void* memory, std::size_t bytes) noexcept = 0;
  // Bytes taken and not yet given back.
  [[nodiscard]] virtual std::size_t bytes_in_use() const noexcept = 0;
};

// Constructs one T in memory of its own from `source`; nullptr when the source is used up.
template <class T, class... Args>
[[nodiscard]] T* make_from(MemorySource& source, Args&&... args) {
  static_assert(alignof(T) <= 4096);
  void* memory = source.take(sizeof(T));
  return memory == nullptr ? nullptr : ::new (memory) T(std::forward<Args>(args)...);
}

// Destroys what make_from() made and gives its memory back. Null is allowed.
template <class T>
void destroy_from(MemorySource& source, T* object) noexcept {
  if (object == nullptr) return;
  object->~T();
  source.give(object, sizeof(T));
}

// A fixed array of zero-initialised T; empty when the source was used up.
template <class T>
class SourceArray {
 public:
  SourceArray() = default;
  SourceArray(MemorySource& source, std::size_t count) noexcept
      : source_(&source), data_(static_cast<T*>(source.take(count * sizeof(T)))), size_(data_ == nullptr ? 0 : count) {
    for (std::size_t i = 0; i < size_; ++i) ::new (static_cast<void*>(data_ + i)) T();
  }
  SourceArray(SourceArray&& other) noexcept { swap(other); }
  SourceArray& operator=(SourceArray&& other) noexcept {
    swap(other);
    return *this;
  }
  ~SourceArray() {
    for (std::size_t i = 0; i < size_; ++i) data_[i].~T();
    if (data_ != nullptr) source_->give(data_, size_ * sizeof(T));
  }
  [[nodiscard]] T& operator[](std::size_t i) noexcept { return data_[i]; }
  [[nodiscard]] const T& operator[](std::size_t i) const noexcept { return data_[i]; }
  [[nodiscard]] T* data() noexcept { return data_; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  [[nodiscard]] T* begin() noexcept { return data_; }
  [[nodiscard]] T* end() noexcept { return data_ + size_; }

 private:
  void swap(SourceArray& other) noexcept {
    std::swap(source_, other.source_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  MemorySource* source_ = nullptr;
  T* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace whimbrel
