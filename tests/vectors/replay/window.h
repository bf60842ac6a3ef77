// The window of addresses that scripts work in, and CPU access to it with signals turned into results.
#pragma once

#include <cstddef>

#include "tests/mirror/dmirror_abi.h"
#include "tests/mirror/run_list.h"

namespace vectors {

constexpr std::size_t kPageSize = DMIRROR_PAGE;
constexpr long kWindowPages = 16384;

// Address of a page of the window. The window is the same in every run, so that the order in which a device or a
// stand-in finds the pages is the same too; it is far from where the kernel places mappings by itself.
[[nodiscard]] char* window_page(long page);

// Size in bytes of that many pages; negative numbers wrap as in the system calls they are meant for.
[[nodiscard]] inline std::size_t bytes_of(long pages) { return static_cast<std::size_t>(pages) * kPageSize; }

// From now on SIGSEGV and SIGBUS of the accesses below end in results. Once per process; inherited by fork.
void catch_faults();

// Stamps or describes `count` pages from `first`, `step` apart, one word per page: "ok" or the contents; SEGV or BUS
// when the access was answered by that signal.
void cpu_write(long first, long count, long step, unsigned value, run_list& words);
void cpu_read(long first, long count, long step, run_list& words);

// Describes pages that are readable, as seen from position `first`.
void describe_pages(const char* data, long first, long count, run_list& words);

// An anonymous buffer outside the window, all present, given back by the destructor. Without memory the process ends.
class Buffer {
 public:
  explicit Buffer(long pages);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] char* data() { return data_; }

 private:
  std::size_t size_;
  char* data_;
};

}  // namespace vectors
