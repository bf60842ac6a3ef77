// EngineThreads by the clone system call. See engine_threads.h.
#pragma once

#include <atomic>
#include <span>

#include "base/memory_source.h"
#include "base/mutex.h"
#include "linux/engine_threads.h"

namespace whimbrel {

class RawEngineThreads final : public EngineThreads {
 public:
  // Stacks and thread-local areas come from `memory`, whose pages must be real mapped memory of their own (their
  // protection is changed: not the heap). It outlives this object.
  RawEngineThreads(MemorySource& memory, const EngineThreadOptions& options) noexcept;
  ~RawEngineThreads() override;

  [[nodiscard]] Result<int> start_first(Body body, void* argument) noexcept override;
  [[nodiscard]] Result<int> start_another(Body body, void* argument) noexcept override;
  void join(int n) noexcept override;
  [[nodiscard]] std::uint32_t thread_id(int n) const noexcept override;
  void forget_after_fork() noexcept override;

  static constexpr std::size_t kMostKept = 64;  // numbers in keep_also(): those of a device made of devices
  void keep_also(std::span<const int> numbers) noexcept override;

 private:
  // One block of memory per thread, from low to high: guard, stack, thread-local storage, thread control block.
  struct Slot {
    std::atomic<std::uint32_t> thread_id{0};
    std::byte* block = nullptr;  // null: the slot is free
    Body body = nullptr;
    void* argument = nullptr;
    const RawEngineThreads* owner = nullptr;
    bool first = false;
  };

  [[nodiscard]] Result<int> start(Body body, void* argument, bool first) noexcept EXCLUDES(mutex_);
  [[nodiscard]] std::byte* make_block() noexcept;
  void free_block(std::byte* block) noexcept;
  [[nodiscard]] std::size_t block_bytes() const noexcept;
  void close_all_but_kept() const noexcept;
  static void run(void* slot);

  MemorySource& memory_;
  const EngineThreadOptions options_;
  const std::size_t tls_bytes_;
  int kept_[kMostKept] = {};  // ascending
  std::size_t kept_count_ = 0;
  mutable Mutex mutex_;  // which slots are taken; everything else in a slot belongs to its thread's starter
  Slot slots_[kMost];
};

}  // namespace whimbrel
