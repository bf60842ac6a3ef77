#include "cli/preload_library.h"

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

}  // namespace whimbrel::cli
