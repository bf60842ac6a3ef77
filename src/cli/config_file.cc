#include "cli/config_file.h"

#include <unistd.h>

#include <cstdlib>
#include <string_view>

namespace whimbrel::cli {
namespace {

constexpr std::string_view kName = "/whimbrel/config.toml";

bool is_there(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

// A directory that a variable names; relative ones do not count (XDG Base Directory Specification).
std::string directory_in(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && value[0] == '/' ? value : std::string();
}

}  // namespace

ConfigFile find_config_file() {
  if (const char* named = std::getenv("WHIMBREL_CONFIG"); named != nullptr) return {named, named[0] != '\0'};
  std::string own = directory_in("XDG_CONFIG_HOME");
  if (own.empty() && !directory_in("HOME").empty()) own = directory_in("HOME") + "/.config";
  if (!own.empty() && is_there(own.append(kName))) return {own, false};
  const std::string system = std::string("/etc").append(kName);
  return is_there(system) ? ConfigFile{system, false} : ConfigFile();
}

}  // namespace whimbrel::cli
