// Fiber: a function with a stack of its own that runs until it switches away. What the scheduler makes threads of.
//
// Not thread-safe: one operating-system thread owns a fiber. x86-64 System V only, like the engine.
#pragma once

#include <cstddef>
#include <functional>

namespace whimbrel::sim {

class Fiber {
 public:
  // The calling thread's own flow of control, to come back to.
  Fiber();
  // Starts `body` at the first switch to it. When body ends, `exit_to` goes on; the fiber cannot be resumed then.
  Fiber(std::function<void()> body, Fiber& exit_to);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Leaves `from` (which must be running) and goes on in this one.
  void resume_from(Fiber& from);
  [[nodiscard]] bool finished() const { return finished_; }

 private:
  static void entry() noexcept;
  void before_switch(Fiber& from, bool from_ends);
  void after_switch();

  std::function<void()> body_;
  Fiber* exit_to_ = nullptr;
  void* stack_ = nullptr;  // lowest usable byte
  void* stack_pointer_ = nullptr;
  bool finished_ = false;
  // What the sanitizers keep per fiber.
  [[maybe_unused]] void* sanitizer_stack_ = nullptr;
  [[maybe_unused]] const void* sanitizer_bottom_ = nullptr;
  [[maybe_unused]] std::size_t sanitizer_size_ = 0;
  [[maybe_unused]] void* tsan_fiber_ = nullptr;
};

}  // namespace whimbrel::sim
