// A device as it is named on the command line.
#pragma once

#include <string>

#include "cli/live_runs.h"

namespace whimbrel::cli {

// The specification with its paths absolute: the program's processes may be anywhere.
[[nodiscard]] std::string with_absolute_path(const std::string& spec);
// False: `problem` begins with the specification and says what is wrong, `advice` what there is.
[[nodiscard]] bool is_good_device(const std::string& spec, std::string* problem, std::string* advice);
// Exit status of the refusal, which names `option` and has been printed; 0: it is a good specification.
[[nodiscard]] int check_device(const char* option, const std::string& spec);

// Another device for a run: change number run.device_changes + 1. Exit status of a refusal with its reasons, or 0.
[[nodiscard]] int order_device(const RunSample& run, const std::string& spec, std::string* problem, std::string* advice);

}  // namespace whimbrel::cli
