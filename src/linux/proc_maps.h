// Reading /proc/PID/maps and smaps as text: what newer kernels answer by PROCMAP_QUERY, and the flags they do not
// answer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "port/mmu.h"

namespace whimbrel {

// One line of maps, or the first line of an entry of smaps. False: it is not such a line. Sets kFlagsUnknown.
[[nodiscard]] bool parse_mapping_line(std::string_view line, Mapping& out) noexcept;

// The flag bits that a name such as "[heap]" implies.
[[nodiscard]] std::uint32_t flags_of_name(std::string_view name) noexcept;

// "VmFlags: rd wr …" of smaps: adds the bits to `out` and clears kFlagsUnknown. False: it is another line.
[[nodiscard]] bool parse_vm_flags(std::string_view line, Mapping& out) noexcept;

// Lines of a descriptor, through a buffer on the stack. Lines longer than the buffer are cut: their tail (of a path
// name) is lost.
class LineReader {
 public:
  explicit LineReader(int fd) noexcept : fd_(fd) {}
  // The next line without its newline, valid until the next call. False at the end and after an error.
  [[nodiscard]] bool next(std::string_view& line) noexcept;
  [[nodiscard]] const Error& error() const noexcept { return error_; }
  [[nodiscard]] bool failed() const noexcept { return failed_; }

 private:
  bool fill() noexcept;

  int fd_;
  std::size_t begin_ = 0;
  std::size_t end_ = 0;
  std::uint64_t offset_ = 0;  // in the file, of what comes after the buffer
  bool skipping_ = false;     // the rest of a line that was cut
  bool at_end_ = false;
  bool failed_ = false;
  Error error_{};
  char buffer_[8192];
};

}  // namespace whimbrel
