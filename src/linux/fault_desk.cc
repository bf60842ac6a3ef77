#include "linux/fault_desk.h"

#include <linux/futex.h>
#include <sys/syscall.h>

#include "base/syscall.h"

namespace whimbrel {
namespace {

// A thread that finds no seat looks again at the latest after this long.
constexpr std::int64_t kLookAgain = 1'000'000;

}  // namespace

// The lowest free seat: few are in use, so few are looked at.
FaultDesk::Seat& FaultDesk::sit_down(std::uint32_t thread, std::uint32_t* word) noexcept {
  for (;;) {
    const std::uint32_t seen = seat_freed_.value();
    for (std::uint32_t i = 0; i < kSeats; ++i) {
      Seat& seat = seats_[i];
      std::uint32_t now = seat.word.load(std::memory_order_relaxed);
      if (state_of(now) != State::kFree && state_of(now) != State::kFreeWasOpen) continue;
      if (!seat.word.compare_exchange_strong(now, with(now, State::kTaking), std::memory_order_acquire)) continue;
      std::uint32_t top = top_.load(std::memory_order_relaxed);
      while (top <= i && !top_.compare_exchange_weak(top, i + 1, std::memory_order_release)) {
      }
      seat.thread.store(thread, std::memory_order_relaxed);
      *word = with(now, State::kTaking);
      return seat;
    }
    standing_.fetch_add(1, std::memory_order_seq_cst);
    seat_freed_.wait(seen, kLookAgain);
    standing_.fetch_sub(1, std::memory_order_relaxed);
  }
}

FaultDesk::Answer FaultDesk::wait(VirtualAddress address, bool write, std::uint32_t thread) noexcept {
  std::uint32_t word = 0;
  Seat& seat = sit_down(thread, &word);
  seat.address.store(address.raw(), std::memory_order_relaxed);
  seat.write.store(write, std::memory_order_relaxed);
  seat.word.store(with(word, State::kPosted), std::memory_order_release);
  bell_.advance();
  const std::uint32_t mine = word >> kStateBits;
  for (;;) {
    const std::uint32_t now = seat.word.load(std::memory_order_acquire);
    if (now >> kStateBits != mine) {
      const bool next = now >> kStateBits == ((mine + 1) & (~0u >> kStateBits));  // else the seat is another's already
      return next && state_of(now) == State::kFreeWasOpen ? Answer::kWasOpen : Answer::kGoOn;
    }
    if (state_of(now) == State::kFatal) return Answer::kFatal;
    sys::call(SYS_futex, sys::arg(&seat.word), FUTEX_WAIT_PRIVATE, now, 0);
  }
}

bool FaultDesk::take(Touch* out) noexcept {
  const std::uint32_t top = top_.load(std::memory_order_acquire);
  for (std::uint32_t i = 0; i < top; ++i) {
    Seat& seat = seats_[i];
    std::uint32_t now = seat.word.load(std::memory_order_acquire);
    if (state_of(now) != State::kPosted) continue;
    *out = {VirtualAddress(seat.address.load(std::memory_order_relaxed)), seat.write.load(std::memory_order_relaxed),
            seat.thread.load(std::memory_order_relaxed), i};
    if (seat.word.compare_exchange_strong(now, with(now, State::kTaken), std::memory_order_acq_rel)) return true;
  }
  return false;
}

bool FaultDesk::has_untaken() const noexcept {
  const std::uint32_t top = top_.load(std::memory_order_acquire);
  for (std::uint32_t i = 0; i < top; ++i) {
    if (state_of(seats_[i].word.load(std::memory_order_acquire)) == State::kPosted) return true;
  }
  return false;
}

// The seat is free from here on, whether its thread has woken up or not.
void FaultDesk::release(Seat& seat, std::uint32_t word, State state) noexcept {
  const std::uint32_t next = state == State::kFatal ? with(word, state) : with(word + (1u << kStateBits), state);
  if (!seat.word.compare_exchange_strong(word, next, std::memory_order_acq_rel)) return;
  sys::call(SYS_futex, sys::arg(&seat.word), FUTEX_WAKE_PRIVATE, 1 << 30);
  if (standing_.load(std::memory_order_seq_cst) != 0) seat_freed_.advance();
}

void FaultDesk::answer(PageRange range, State state) noexcept {
  const std::uint32_t top = top_.load(std::memory_order_acquire);
  for (std::uint32_t i = 0; i < top; ++i) {
    Seat& seat = seats_[i];
    for (;;) {
      const std::uint32_t now = seat.word.load(std::memory_order_acquire);
      if (!is_waited_on(now)) break;
      if (!range.contains(PageIndex::of(VirtualAddress(seat.address.load(std::memory_order_relaxed))))) break;
      release(seat, now, state);  // taken over in between: once more
    }
  }
}

void FaultDesk::was_open(const Touch& touch) noexcept {
  Seat& seat = seats_[touch.seat];
  const std::uint32_t now = seat.word.load(std::memory_order_acquire);
  if (state_of(now) == State::kTaken && seat.thread.load(std::memory_order_relaxed) == touch.thread) {
    release(seat, now, State::kFreeWasOpen);
  }
}

bool FaultDesk::waits(std::uint32_t thread, PageRange range) const noexcept {
  const std::uint32_t top = top_.load(std::memory_order_acquire);
  for (std::uint32_t i = 0; i < top; ++i) {
    const Seat& seat = seats_[i];
    if (is_waited_on(seat.word.load(std::memory_order_acquire)) && seat.thread.load(std::memory_order_relaxed) == thread &&
        range.contains(PageIndex::of(VirtualAddress(seat.address.load(std::memory_order_relaxed))))) {
      return true;
    }
  }
  return false;
}

}  // namespace whimbrel
