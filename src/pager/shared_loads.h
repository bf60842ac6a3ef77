// SharedLoads: the loads of one large batch done by two threads. What a stream brings at once takes a synchronous device
// milliseconds to decode, all of it between the program's touch and its going on; the background thread has little to do
// meanwhile, on a processor of its own where there is one.
//
// The batch is cut into slices that either thread takes one after another, so a helper that is late, or never comes, costs
// nothing but the waking. What a helper has begun is waited for.
//
// Across a fork nothing is needed: loads may go on while one is prepared (port/device.h), and the child starts anew.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace whimbrel {

class PagerCore;
struct Lane;

class SharedLoads {
 public:
  explicit SharedLoads(PagerCore& core) noexcept : core_(core) {}

  // Starts and finishes all loads of the lane, which is the caller's; `digests`: and sets those of the pages loaded. Only what
  // the fault thread asks for is shared.
  void transfer(Lane& lane, bool digests) noexcept;
  // Takes part in what is under way; whether there was anything. Any other thread, one at a time or several.
  bool help() noexcept;
  // In a forked child, before its threads start.
  void reset_in_child() noexcept;

 private:
  // Takes the next slice and carries it out. 0: none is left; else how many pages it was.
  std::size_t do_slice() noexcept;
  void run(Lane& lane, std::size_t first, std::size_t end, bool digests) noexcept;

  PagerCore& core_;
  // What is left: the number of the batch, the first operation nobody has taken, the number of operations. In one word, so
  // that a slice of one batch is never taken for one of the next.
  std::atomic<std::uint64_t> left_{0};
  std::atomic<std::uint32_t> done_{0};  // operations of this batch
  std::uint32_t batch_ = 0;
  std::atomic<bool> digests_{false};  // of this batch
};

}  // namespace whimbrel
