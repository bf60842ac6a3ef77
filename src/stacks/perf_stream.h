// PerfStream: 1 in N of the page faults of a program and of all it starts, with registers and a copy of the stack, from the kernel's
// performance events.
//
// The kernel counts, copies and queues, in the thread that faults and before it waits for its page; the engine has no part in it. What is copied is what is present: it never faults. Events are opened for the program from outside, before
// it starts, one for each processor.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace whimbrel::stacks {

// In the order of DWARF's numbers for x86-64; the last one is the return address column, here the program counter.
inline constexpr std::size_t kRegisters = 17;
inline constexpr std::size_t kStackPointer = 7;
inline constexpr std::size_t kProgramCounter = 16;

struct PerfRecord {
  enum class What : std::uint8_t { kSample, kMapping, kExec, kFork, kExit } what = What::kSample;
  std::uint64_t time_ns = 0;  // monotonic clock
  std::uint32_t pid = 0;
  std::uint32_t parent = 0;  // fork
  // Sample: where memory was touched. Mapping: where the file is mapped for execution.
  std::uint64_t address = 0;
  std::uint64_t length = 0, file_offset = 0;           // mapping
  std::string path;                                    // mapping
  std::array<std::uint64_t, kRegisters> registers{};  // sample; all zero: the thread had none
  std::vector<std::byte> stack;                        // sample: from the stack pointer upwards
};

class PerfStream {
 public:
  PerfStream() = default;
  ~PerfStream();
  PerfStream(const PerfStream&) = delete;
  PerfStream& operator=(const PerfStream&) = delete;

  // Whether this user may have such events; `problem` and `advice` say why not.
  [[nodiscard]] static bool permitted(std::string* problem, std::string* advice);
  // For process `pid`, from its next exec on. False with errno: it could not be done.
  [[nodiscard]] bool open(pid_t pid, std::uint64_t period);
  // Appends what has come, in the order of time.
  void take(std::vector<PerfRecord>* out);

  [[nodiscard]] std::uint64_t lost() const { return lost_; }
  // Whether touches by system calls are among the samples: that needs more rights.
  [[nodiscard]] bool sees_system_calls() const { return system_calls_; }

 private:
  struct Ring {
    int fd = -1;
    void* base = nullptr;
    std::size_t bytes = 0;  // mapped
  };
  [[nodiscard]] bool open_ring(pid_t pid, int processor, std::uint64_t period);
  void take_ring(const Ring& ring, std::vector<PerfRecord>* out);
  void parse(const std::byte* record, std::vector<PerfRecord>* out);

  std::vector<Ring> rings_;
  std::vector<std::byte> scratch_;
  std::uint64_t lost_ = 0;
  bool system_calls_ = true;
};

}  // namespace whimbrel::stacks
