#include "cli/device_spec.h"

namespace whimbrel::cli {

bool check_device_spec(const std::string& spec, std::string* problem, std::string* advice) {
  if (spec == "zstd" || spec == "lz4" || spec == "ram") return true;
  *problem = "--device " + spec + ": unknown device";
  *advice = "one of zstd, lz4, ram";
  return false;
}

}  // namespace whimbrel::cli
