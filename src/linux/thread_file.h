// A small file of another thread of this process, such as /proc/PID/task/TID/status.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "linux/sys.h"

namespace whimbrel {

class ThreadFile {
 public:
  ThreadFile(std::uint32_t thread, const char* name) noexcept {
    char path[64] = "/proc/thread-self/../";  // not of "self": that is empty once the main thread has left
    char* at = path + std::strlen(path);
    char digits[12];
    int n = 0;
    do digits[n++] = static_cast<char>('0' + thread % 10);
    while ((thread /= 10) != 0);
    while (n > 0) *at++ = digits[--n];
    std::memcpy(at, name, std::strlen(name) + 1);
    const Result<std::size_t> got = sys::read_text(path, text_, sizeof text_);
    length_ = got ? *got : 0;
  }
  [[nodiscard]] std::string_view text() const noexcept { return {text_, length_}; }

 private:
  char text_[4096];
  std::size_t length_ = 0;
};

}  // namespace whimbrel
