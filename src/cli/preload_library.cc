#include "cli/preload_library.h"

#include <dlfcn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <filesystem>

namespace whimbrel::cli {

std::string find_preload_library(std::string* tried) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  const fs::path places[] = {here / ".." / "lib", here / ".." / WHIMBREL_LIBDIR, WHIMBREL_FULL_LIBDIR};
  for (const fs::path& place : places) {
    const fs::path candidate = (place / "libwhimbrel-preload.so").lexically_normal();
    // The loader splits LD_PRELOAD at spaces and colons and knows no way to write them.
    if (fs::exists(candidate, error) && candidate.string().find_first_of(": ") == std::string::npos) return candidate;
    if (tried != nullptr) tried->append(tried->empty() ? "" : ", ").append(candidate);
  }
  return {};
}

bool can_be_loaded(const std::string& library, std::string* problem) {
  int report[2];
  if (pipe(report) != 0) return true;  // the program itself will show
  const pid_t child = fork();
  if (child == 0) {
    close(report[0]);
    clearenv();  // without its settings the library does nothing
    const char* error = "";
    if (dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL) == nullptr) error = dlerror();
    const std::string_view text = error != nullptr ? error : "unknown reason";
    (void)!write(report[1], text.data(), text.size());
    _exit(0);
  }
  close(report[1]);
  char text[512];
  for (;;) {
    const ssize_t got = child < 0 ? 0 : read(report[0], text, sizeof text);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) break;
    problem->append(text, static_cast<std::size_t>(got));
  }
  close(report[0]);
  int status = 0;
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  if (problem->empty() && !WIFEXITED(status)) *problem = library + ": loading it crashes";
  return problem->empty();
}

}  // namespace whimbrel::cli
