// FaultStacks: which places in a program's code make it wait for memory.
//
// Of the page faults that the kernel samples (perf_stream.h) most are the engine's, others are the kernel's own: memory that was
// never managed, files. What the engines recorded (pager/event_ring.h) tells them apart: a sample counts when the same process
// waited for the same page at that time, and takes from there how long, and whether the page had been away.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "stacks/perf_stream.h"
#include "stacks/process_image.h"

namespace whimbrel::stacks {

// One line of the list: faults whose innermost function outside the C and C++ libraries was at the same place.
struct PlaceTotals {
  std::uint64_t samples = 0;        // touches of memory that was away
  std::uint64_t first_touches = 0;  // of memory that had never been used
  std::uint64_t wait_ns = 0;        // of all these together
  std::string place;                // "walk matrix.c:42"
  std::string inside;               // "memmove libc.so.6" when the touch itself was in a library, otherwise empty
  std::vector<std::string> callers; // of the stack that was seen most, from the nearest
};

struct StackTotals {
  std::uint64_t period = 0;         // 1 in so many faults was looked at
  std::uint64_t samples = 0;        // of memory that was away, of all places
  std::uint64_t first_touches = 0;
  std::uint64_t ordinary = 0;       // page faults that were no business of the engine's
  std::uint64_t skipped = 0;        // unwinding them would have taken too much time; they are in `samples`
  std::uint64_t lost = 0;           // the kernel had no room for them
  bool system_calls = false;        // whether touches by system calls are among them
  std::vector<PlaceTotals> places;  // most samples first
};

class FaultStacks {
 public:
  explicit FaultStacks(std::uint64_t period) : period_(period), recent_(kRecent) {}

  // Before the program starts: `pid` is what will become it.
  [[nodiscard]] bool open(pid_t pid) { return perf_.open(pid, period_); }

  // A fault that an engine has served; in any order.
  void served(std::uint32_t pid, std::uint64_t first_page, std::uint32_t pages, std::uint64_t time_ns, std::uint64_t latency_ns, bool fresh);
  // Takes what the kernel has; a few times a second at least, many times where there are many faults. `last`: nothing more comes.
  void look(std::uint64_t now_ns, bool last);

  [[nodiscard]] StackTotals totals() const;

 private:
  struct Served {
    std::uint64_t page = 0, time_ns = 0, latency_ns = 0;
    std::uint32_t pid = 0;
    bool fresh = false;
  };
  struct Pending {
    PerfRecord sample;
    std::shared_ptr<ProcessImage> image;
  };
  struct Process {
    std::shared_ptr<ProcessImage> image = std::make_shared<ProcessImage>();
    std::uint64_t ended_ns = 0;
  };
  struct Counts {
    std::uint64_t samples = 0, first_touches = 0, wait_ns = 0;
  };
  static constexpr std::size_t kRecent = std::size_t{1} << 16;
  static constexpr std::size_t kMostFreshPages = 512;

  [[nodiscard]] static std::size_t place_of(std::uint32_t pid, std::uint64_t page) {
    return ((page * 0x9e3779b97f4a7c15u) ^ (pid * 0xc2b2ae3d27d4eb4fu)) >> 48;
  }
  void follow(PerfRecord& record);
  [[nodiscard]] const Served* find(const PerfRecord& sample) const;
  void count(const Pending& pending, const Served& served);
  [[nodiscard]] bool may_unwind();

  const std::uint64_t period_;
  PerfStream perf_;
  std::vector<Served> recent_;  // by place_of(): a later one takes the place
  std::vector<PerfRecord> records_;
  std::vector<Pending> pending_;
  std::unordered_map<std::uint32_t, Process> processes_;
  FileNames files_;
  std::map<std::vector<Frame>, Counts> stacks_;
  std::uint64_t ordinary_ = 0, skipped_ = 0;
  std::uint64_t begun_ns_ = 0, unwinding_ns_ = 0;
};

}  // namespace whimbrel::stacks
