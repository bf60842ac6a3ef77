// The file with a user's defaults for the commands' options.
#pragma once

#include <string>

namespace whimbrel::cli {

struct ConfigFile {
  std::string path;        // empty: there is none
  bool asked_for = false;  // $WHIMBREL_CONFIG names it: it has to be there
};

// $WHIMBREL_CONFIG (empty: no file), else whimbrel/config.toml in $XDG_CONFIG_HOME or ~/.config, else
// /etc/whimbrel/config.toml: the first that is there.
[[nodiscard]] ConfigFile find_config_file();

}  // namespace whimbrel::cli
