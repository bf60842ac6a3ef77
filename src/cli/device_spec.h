// Judges a --device argument.
#pragma once

#include <string>

namespace whimbrel::cli {

// False: `problem` names what is wrong, `advice` the choices.
[[nodiscard]] bool check_device_spec(const std::string& spec, std::string* problem, std::string* advice);

}  // namespace whimbrel::cli
