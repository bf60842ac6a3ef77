// Where the library is that `run` loads into programs.
#pragma once

#include <string>

namespace whimbrel::cli {

// Beside this program in the build tree or an installation, or in the configured installation directory. Empty: it is
// nowhere; `tried` then lists the places.
[[nodiscard]] std::string find_preload_library(std::string* tried);

// Loads it in a process of its own. False: `problem` says why the loader will not have it.
[[nodiscard]] bool can_be_loaded(const std::string& library, std::string* problem);

}  // namespace whimbrel::cli
