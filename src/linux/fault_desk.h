// FaultDesk: where threads that have touched memory they cannot reach wait for it, in their SIGSEGV handler.
//
// Life of a touch:
//   1. The handler takes a seat, writes down what was touched, rings the bell, and sleeps on the seat's word.
//   2. The thread that serves faults takes the touch over (take()).
//   3. wake() of its page frees the seat: the thread leaves the handler and touches again. Nothing of it is left behind, also
//      when the thread has left its handler another way (a longjmp from the handler of another signal).
//
// wait() is async-signal-safe: no lock, no allocation, nothing but words and futexes. It may be called by any number of threads
// at a time, and again by the handler of another signal that runs on top of a thread that waits. All else: any thread.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/mutex.h"
#include "mm/address.h"

namespace whimbrel {

class FaultDesk {
 public:
  enum class Answer : std::uint8_t {
    kGoOn,       // touch again
    kWasOpen,    // the same, and nobody had to do anything for it
    kFatal,      // the contents cannot be had, and the thread cannot be told by a signal that it handles
  };
  struct Touch {
    VirtualAddress address;
    bool write = false;
    std::uint32_t thread = 0;
    std::uint32_t seat = 0;
  };

  // In the handler: waits until the page of that address is woken.
  [[nodiscard]] Answer wait(VirtualAddress address, bool write, std::uint32_t thread) noexcept;

  // The next touch that nobody has taken over yet. False: there is none.
  [[nodiscard]] bool take(Touch* out) noexcept;
  [[nodiscard]] bool has_untaken() const noexcept;
  // Sends on whoever waits in the range, taken over or not.
  void wake(PageRange range) noexcept { answer(range, State::kFree); }
  // The touch that was taken with this seat needed nothing.
  void was_open(const Touch& touch) noexcept;
  // Ends whoever waits in the range.
  void condemn(PageRange range) noexcept { answer(range, State::kFatal); }
  // Whether that thread waits for a page of the range.
  [[nodiscard]] bool waits(std::uint32_t thread, PageRange range) const noexcept;

  // Advances with every touch; who waits for touches sleeps on it.
  [[nodiscard]] Event& bell() noexcept { return bell_; }

 private:
  static constexpr std::size_t kSeats = 512;
  // The lower bits of a seat's word; above them a number that changes each time the seat becomes free.
  enum class State : std::uint32_t { kFree = 0, kFreeWasOpen, kTaking, kPosted, kTaken, kFatal };
  static constexpr std::uint32_t kStateBits = 3;
  static constexpr std::uint32_t kStateMask = (1u << kStateBits) - 1;

  struct alignas(64) Seat {
    std::atomic<std::uint32_t> word{0};
    std::atomic<std::uint32_t> thread{0};
    std::atomic<std::uint64_t> address{0};
    std::atomic<bool> write{false};
  };

  [[nodiscard]] static State state_of(std::uint32_t word) noexcept { return static_cast<State>(word & kStateMask); }
  [[nodiscard]] static std::uint32_t with(std::uint32_t word, State state) noexcept {
    return (word & ~kStateMask) | static_cast<std::uint32_t>(state);
  }
  [[nodiscard]] static bool is_waited_on(std::uint32_t word) noexcept {
    return state_of(word) == State::kPosted || state_of(word) == State::kTaken;
  }
  [[nodiscard]] Seat& sit_down(std::uint32_t thread, std::uint32_t* word) noexcept;
  void answer(PageRange range, State state) noexcept;
  void release(Seat& seat, std::uint32_t word, State state) noexcept;

  std::array<Seat, kSeats> seats_;
  std::atomic<std::uint32_t> top_{0};  // seats from here on have never been taken
  Event bell_;
  Event seat_freed_;
  std::atomic<std::uint32_t> standing_{0};  // threads that wait for a seat
};

}  // namespace whimbrel
