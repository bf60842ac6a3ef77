#include "output.h"

#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace vectors {

const char* errno_name(int error) {
  const char* name = strerrorname_np(error);
  return name != nullptr ? name : "E?";
}

void Output::begin(int depth, int line, std::string_view operation) {
  line_.assign(static_cast<std::size_t>(depth) * 2, ' ');
  line_.append(std::to_string(line)).append(" ").append(operation).append(" =>");
}

void Output::format(const char* format, ...) {
  char text[256];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  line_.append(text);
}

void Output::put_result(long result) { line_.append(result < 0 ? errno_name(errno) : "ok"); }

void Output::put_list(run_list& list) {
  const char* text = run_list_text(&list);
  if (*text != '\0') line_.append(" ").append(text);
}

void Output::end() {
  line_.push_back('\n');
  for (std::string_view rest = line_; !rest.empty();) {
    const ssize_t written = write(STDOUT_FILENO, rest.data(), rest.size());
    if (written <= 0) _exit(3);
    rest.remove_prefix(static_cast<std::size_t>(written));
  }
  line_.clear();
}

}  // namespace vectors
