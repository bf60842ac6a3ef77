#include "sim/fiber.h"

#include <sys/mman.h>

#include <vector>

#include "base/check.h"

#if defined(__has_feature)  // clang says it so
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define WHIMBREL_FIBER_ASAN 1
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#define WHIMBREL_FIBER_TSAN 1
#endif

#if !defined(__x86_64__)
#error "fibers switch stacks by hand and know x86-64 only"
#endif

// Saves what the calling convention makes the callee keep, stores the stack pointer, and takes up another stack.
extern "C" void whimbrel_sim_switch(void** save, void* load);
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".globl whimbrel_sim_switch\n"
    ".type whimbrel_sim_switch,@function\n"
    "whimbrel_sim_switch:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size whimbrel_sim_switch,.-whimbrel_sim_switch\n");

namespace whimbrel::sim {
namespace {

constexpr std::size_t kStackBytes = 256 * 1024;
constexpr std::size_t kGuardBytes = 4096;

Fiber* starting = nullptr;  // handed to entry(), which has no arguments

// Stacks are kept: worlds come by the hundred thousand, and a fresh stack costs a fault per page.
std::vector<void*>& spare_stacks() {
  static std::vector<void*> stacks;
  return stacks;
}

void* take_stack() {
  auto& spare = spare_stacks();
  if (!spare.empty()) {
    void* stack = spare.back();
    spare.pop_back();
    return stack;
  }
  void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  CHECK(memory != MAP_FAILED, "no memory for a fiber's stack");
  CHECK(mprotect(memory, kGuardBytes, PROT_NONE) == 0);
  return static_cast<std::byte*>(memory) + kGuardBytes;
}

}  // namespace

Fiber::Fiber() {
#ifdef WHIMBREL_FIBER_TSAN
  tsan_fiber_ = __tsan_get_current_fiber();
#endif
}

Fiber::Fiber(std::function<void()> body, Fiber& exit_to)
    : body_(std::move(body)), exit_to_(&exit_to), stack_(take_stack()) {
  // As if entry() had been called and had just switched away: six registers, then the return address. The stack is
  // aligned as after a call instruction: 8 bytes off a multiple of 16 once entry() runs.
  auto** top = reinterpret_cast<void**>(static_cast<std::byte*>(stack_) + kStackBytes);
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&Fiber::entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  stack_pointer_ = top;
  sanitizer_bottom_ = stack_;
  sanitizer_size_ = kStackBytes;
#ifdef WHIMBREL_FIBER_TSAN
  tsan_fiber_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
  if (stack_ == nullptr) return;
#ifdef WHIMBREL_FIBER_TSAN
  __tsan_destroy_fiber(tsan_fiber_);
#endif
#ifdef WHIMBREL_FIBER_ASAN
  // An abandoned stack is full of poisoned frames; never hand it on.
  if (!finished_) return;
#endif
  spare_stacks().push_back(stack_);
}

void Fiber::before_switch([[maybe_unused]] Fiber& from, [[maybe_unused]] bool from_ends) {
#ifdef WHIMBREL_FIBER_ASAN
  __sanitizer_start_switch_fiber(from_ends ? nullptr : &from.sanitizer_stack_, sanitizer_bottom_, sanitizer_size_);
#endif
#ifdef WHIMBREL_FIBER_TSAN
  __tsan_switch_to_fiber(tsan_fiber_, 0);
#endif
}

// Runs on the stack of the fiber that has just gone on.
void Fiber::after_switch() {
#ifdef WHIMBREL_FIBER_ASAN
  const void* bottom = nullptr;
  std::size_t size = 0;
  __sanitizer_finish_switch_fiber(sanitizer_stack_, &bottom, &size);
  // Whoever was left: only the thread's own stack is still unknown.
  if (exit_to_ != nullptr && exit_to_->sanitizer_bottom_ == nullptr) {
    exit_to_->sanitizer_bottom_ = bottom;
    exit_to_->sanitizer_size_ = size;
  }
#endif
}

void Fiber::resume_from(Fiber& from) {
  CHECK(!finished_ && this != &from);
  if (body_ && stack_pointer_ != nullptr) starting = this;
  before_switch(from, from.finished_);
  whimbrel_sim_switch(&from.stack_pointer_, stack_pointer_);
  from.after_switch();
}

void Fiber::entry() noexcept {
  Fiber* self = starting;
  self->after_switch();
  self->body_();
  self->finished_ = true;
  self->exit_to_->resume_from(*self);
  CHECK(false, "a finished fiber was resumed");
}

}  // namespace whimbrel::sim
