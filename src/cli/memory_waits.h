// MemoryWaits: which threads of a process wait for memory that is not there, and for how long the same wait has lasted.
//
// The kernel names the place where a thread sleeps (proc(5): wchan), and that place is the same for every wait of this kind.
// A wait that has lasted and that nobody works on has been lost: whoever sleeps there is to be woken, touches the page again and is
// served like anybody else. A thread may also wait for another userfaultfd than whimbrel's, one that the program itself has opened: the
// wake does not reach that one, it is recognised by having slept through, and left alone.
//
// Without the right to look into the process, or where the kernel does not name the place, nothing is found. Not thread-safe.
#pragma once

#include <chrono>
#include <cstdint>
#include <initializer_list>
#include <unordered_map>

namespace whimbrel::cli {

class MemoryWaits {
 public:
  using Time = std::chrono::steady_clock::time_point;

  struct Found {
    bool rewake = false;       // everybody who waits is to be woken, and the next look is to follow soon
    std::uint32_t helped = 0;  // a thread that goes on since it was woken; 0: none
    std::chrono::steady_clock::duration waited{};  // for how long that one had
  };
  // Waits of `pid`'s threads, those of `engine` excepted. `idle`: the engine serves nothing at this moment. A wait is taken for
  // lost after `patience`. Reads some files of /proc for each thread.
  [[nodiscard]] Found look(std::uint32_t pid, std::initializer_list<std::uint32_t> engine, Time now,
                           std::chrono::steady_clock::duration patience, bool idle);
  // What has been seen so far means nothing any more: the process was stopped.
  void forget() { waits_.clear(); }

 private:
  struct Wait {
    std::uint64_t switches = 0;  // how often it had gone to sleep by then: the same number, the same wait
    Time since{}, seen{};
    bool woken = false;
    bool not_ours = false;
  };
  void note(std::uint32_t thread, std::uint64_t switches, Time now);

  std::unordered_map<std::uint32_t, Wait> waits_;  // by thread
};

}  // namespace whimbrel::cli
