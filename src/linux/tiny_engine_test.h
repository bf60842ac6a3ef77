// For tests: the smallest engine, on an engine thread with a descriptor table of its own.
#pragma once

#include <atomic>
#include <memory>

#include "base/mutex.h"
#include "linux/libc_engine_threads.h"
#include "linux/mmu_fixture_test.h"
#include "linux/raw_engine_threads.h"

namespace whimbrel::test {

inline std::unique_ptr<EngineThreads> make_threads(MemorySource& memory, const EngineThreadOptions& options = {}) {
  if (kRawThreadsUsable) return std::make_unique<RawEngineThreads>(memory, options);
  return std::make_unique<LibcEngineThreads>(options);
}

// The smallest engine: steals a range page by page into a window and brings each page home when it is touched.
class TinyEngine {
 public:
  TinyEngine(MemorySource& memory, const Memory& home, UserfaultMmu::Options options = {})
      : memory_(memory), home_(home), options_(options) {}

  // Starts the engine thread and returns when everything is away. The error of create() otherwise.
  Result<void> start() {
    threads_ = make_threads(memory_);
    const Result<int> n = threads_->start_first([](void* self) { static_cast<TinyEngine*>(self)->run(); }, this);
    if (!n) return std::unexpected(n.error());
    thread_ = *n;
    while (ready_.value() == 0) ready_.wait(0);
    if (!made_) {
      threads_->join(thread_);
      return std::unexpected(made_.error());
    }
    return {};
  }
  // In a forked child: the pages that were away at the fork are away in the child too.
  Result<void> restart_in_child() {
    (*made_)->reset_after_fork();
    threads_->forget_after_fork();
    threads_.release();  // made before the fork; nothing of it may run
    threads_ = make_threads(memory_);
    ready_.reset_after_fork();
    in_child_ = true;
    const Result<int> n = threads_->start_first([](void* self) { static_cast<TinyEngine*>(self)->run(); }, this);
    if (!n) return std::unexpected(n.error());
    thread_ = *n;
    while (ready_.value() == 0) ready_.wait(0);
    return reopened_;
  }
  void stop() {
    stop_ = true;
    threads_->join(thread_);
  }
  [[nodiscard]] int served() const { return served_; }
  [[nodiscard]] Rung rung() const { return (*made_)->rung(); }
  [[nodiscard]] UserfaultMmu& mmu() { return **made_; }
  int wrong = 0;

 private:
  void run() {
    if (in_child_) {
      reopened_ = (*made_)->reopen_in_child();
      if (reopened_) reopened_ = (*made_)->watch(home_.range());
    } else {
      made_ = UserfaultMmu::create(memory_, options_);
      if (made_) steal();
    }
    ready_.advance();
    if (!made_ || (in_child_ && !reopened_)) return;
    while (!stop_) serve();
    bring_all_home();
    UserfaultMmu::destroy(*made_);
  }
  void steal() {
    UserfaultMmu& mmu = **made_;
    const Result<PageRange> window = mmu.open_window(home_.range().count, WindowKind::kSmall);
    if (!window || !mmu.watch(home_.range())) {
      ++wrong;
      return;
    }
    frames_ = *window;
    const Progress progress = mmu.move(frames_.first, home_.page(0), frames_.count, Wake::kNo);
    if (progress.failed) ++wrong;
  }
  void serve() {
    UserfaultMmu& mmu = **made_;
    if (!mmu.wait_for_message(10'000'000)) return;
    Message messages[4];
    const std::size_t count = mmu.read_messages(messages);
    for (std::size_t i = 0; i < count; ++i) {
      if (messages[i].kind != Message::Kind::kFault) continue;
      ++served_;  // before the toucher goes on and looks at it
      bring_home(messages[i].range.first);
    }
  }
  void bring_home(PageIndex page) {
    UserfaultMmu& mmu = **made_;
    const PageIndex frame = frames_.first + (page - home_.page(0));
    for (;;) {
      const Progress progress = mmu.copy(page, mmu.bytes(frame), PageCount(1), Wake::kYes);
      if (!progress.failed) return;
      if (progress.error.code == Errc::kExists) return mmu.wake({page, PageCount(1)});
      if (progress.error.code == Errc::kEventPending || progress.error.code == Errc::kAgain) {
        Message event;
        (void)mmu.read_messages({&event, 1});
        continue;
      }
      ++wrong;
      return;
    }
  }
  void bring_all_home() {
    for (std::size_t i = 0; i < home_.range().count.raw(); ++i) bring_home(home_.page(i));
    (void)(*made_)->unwatch(home_.range());
  }

  MemorySource& memory_;
  const Memory& home_;
  const UserfaultMmu::Options options_;
  std::unique_ptr<EngineThreads> threads_;
  int thread_ = -1;
  Event ready_;
  Result<UserfaultMmu*> made_ = fail(Errc::kInvalid);
  Result<void> reopened_ = {};
  PageRange frames_;
  std::atomic<bool> stop_{false};
  bool in_child_ = false;
  std::atomic<int> served_{0};
};

}  // namespace whimbrel::test
