// Whether `run` can work here at all: asked before any program is started.
#pragma once

#include <string>

namespace whimbrel::cli {

// False: `problem` says what is missing, `advice` what to do about it.
[[nodiscard]] bool ready_to_run(std::string* problem, std::string* advice);

}  // namespace whimbrel::cli
