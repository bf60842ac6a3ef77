// EngineThreads by pthread_create. See engine_threads.h.
#pragma once

#include <pthread.h>

#include <atomic>

#include "base/mutex.h"
#include "linux/engine_threads.h"

namespace whimbrel {

class LibcEngineThreads final : public EngineThreads {
 public:
  explicit LibcEngineThreads(const EngineThreadOptions& options) noexcept : options_(options) {}
  ~LibcEngineThreads() override;

  [[nodiscard]] Result<int> start_first(Body body, void* argument) noexcept override;
  [[nodiscard]] Result<int> start_another(Body body, void* argument) noexcept override;
  void join(int n) noexcept override;
  [[nodiscard]] std::uint32_t thread_id(int n) const noexcept override;
  void forget_after_fork() noexcept override;

 private:
  struct Slot {
    bool taken = false;
    pthread_t thread{};
    std::atomic<std::uint32_t> thread_id{0};
    Body body = nullptr;
    void* argument = nullptr;
    const LibcEngineThreads* owner = nullptr;
    bool first = false;
  };
  [[nodiscard]] Result<int> start(Body body, void* argument, bool first) noexcept EXCLUDES(mutex_);
  static void* run(void* slot);

  const EngineThreadOptions options_;
  Mutex mutex_;  // which slots are taken
  Slot slots_[kMost];
};

}  // namespace whimbrel
