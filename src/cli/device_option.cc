#include "cli/device_option.h"

#include <filesystem>
#include <string_view>
#include <system_error>

#include "base/check.h"
#include "cli/options.h"
#include "devices/device_spec.h"
#include "runtime/settings.h"

namespace whimbrel::cli {
namespace {

// Each comma of a device made of devices may begin another one.
std::string with_absolute_paths(std::string_view parts) {
  std::string out;
  for (;;) {
    const std::size_t comma = parts.find(',');
    std::string_view part = parts.substr(0, comma);
    if (part.starts_with('[')) {
      out += '[';
      part.remove_prefix(1);
    }
    out += with_absolute_path(std::string(part));
    if (comma == std::string_view::npos) return out;
    out += ',';
    parts.remove_prefix(comma + 1);
  }
}

}  // namespace

std::string with_absolute_path(const std::string& spec) {
  const std::size_t colon = spec.find(':');
  if (colon == std::string::npos || colon + 1 == spec.size() || spec[colon + 1] == '/' || spec[colon + 1] == ',') return spec;
  for (const DeviceKind* kind : built_in_devices()) {
    if (kind->name != std::string_view(spec).substr(0, colon)) continue;
    if (kind->made_of_devices) {
      return spec.substr(0, colon + 1) + with_absolute_paths(std::string_view(spec).substr(colon + 1));
    }
    if (!kind->starts_with_path) continue;
    std::error_code error;
    const std::string here = std::filesystem::current_path(error).string();
    if (!error) return spec.substr(0, colon + 1) + here + "/" + spec.substr(colon + 1);
  }
  return spec;
}

bool is_good_device(const std::string& spec, std::string* problem, std::string* advice) {
  SpecMessage message;
  if (spec.size() >= sizeof(Settings::device)) {
    *problem = "too long a specification";
    *advice = "leave options out";
    return false;
  }
  if (check_device_spec(spec, built_in_devices(), message)) return true;
  *problem = spec + ": " + message.c_str();
  *advice = "one of";
  for (const DeviceKind* kind : built_in_devices()) advice->append("\n    ").append(kind->usage);
  return false;
}

int check_device(const char* option, const std::string& spec) {
  std::string problem, advice;
  return is_good_device(spec, &problem, &advice) ? 0 : complain(kExitUsage, option + (" " + problem), advice);
}

int order_device(const RunSample& run, const std::string& spec, std::string* problem, std::string* advice) {
  if (!is_good_device(spec, problem, advice)) return kExitUsage;
  if (needs_device_process(spec, built_in_devices()) && !needs_device_process(run.device, built_in_devices())) {
    *problem = spec + ": the run has no process for such devices";
    *advice = "whimbrel run --device with one of them, so that there is one from the start";
    return kExitUsage;
  }
  Result<StatsFile> file = StatsFile::open(run.path.c_str());
  if (!file) {
    *problem = run.path + ": " + errc_name(file.error().code);
    *advice = "it may have ended: whimbrel top --once";
    return kExitCannotRun;
  }
  CHECK(file->set_device(spec.c_str()), "a specification that was measured");
  file->unmap();
  return 0;
}

}  // namespace whimbrel::cli
