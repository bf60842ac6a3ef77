// The smallest loop that can serve a page: a userfaultfd, a thread that reads faults from it, and UFFDIO_COPY.
// No policy, no table, no store: what remains is the price of the primitive itself on this machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "bench/region.h"

namespace bench {

enum class Placement : std::uint8_t {
  kSameCpu,   // handler and faulter pinned to one CPU
  kOtherCpu,  // each pinned to a CPU of its own
  kFree,      // the scheduler decides
};
[[nodiscard]] const char* placement_name(Placement placement);

// Pins the calling thread, or unpins it (nullopt). False when the CPU does not exist or is not allowed.
bool pin_thread(std::optional<unsigned> cpu);

// Fills `pages` pages at `to` with the contents for the pages from number `first` on.
using PageSource = std::function<void(std::uint64_t first, std::uint64_t pages, std::byte* to)>;

// Serves every missing page of one region of `pages` pages, `window` pages a fault (aligned to the window). Owns the
// descriptor and the handler thread; the destructor ends both. Not thread-safe.
class FaultLoop {
 public:
  // Throws std::runtime_error with the reason and the remedy when the kernel refuses.
  FaultLoop(std::uint64_t pages, std::uint64_t window, Placement placement, PageSource source);
  FaultLoop(const FaultLoop&) = delete;
  FaultLoop& operator=(const FaultLoop&) = delete;
  ~FaultLoop();

  // The first byte of the region. Touching a page faults it in through the loop.
  [[nodiscard]] volatile std::byte* memory() const;
  // Drops all pages, so that they are missing again.
  void drop();

 private:
  void serve();
  void copy_window(std::uint64_t page);

  std::uint64_t pages_;
  std::uint64_t window_;
  PageSource source_;
  std::optional<unsigned> handler_cpu_;
  Region region_;  // one page more than asked for: a fault on the last one ends the handler
  Region buffer_;
  int descriptor_ = -1;
  std::thread handler_;
};

}  // namespace bench
