#include "runtime/settings.h"

#include <cstddef>

namespace whimbrel {
namespace {

// The value when `entry` is "name=value", otherwise null.
const char* value_of(const char* entry, const char* name) noexcept {
  while (*name != 0 && *entry == *name) {
    ++entry;
    ++name;
  }
  return *name == 0 && *entry == '=' ? entry + 1 : nullptr;
}

std::uint64_t number(const char* text) noexcept {
  std::uint64_t value = 0;
  if (*text == 0) return 0;
  for (; *text != 0; ++text) {
    if (*text < '0' || *text > '9' || value > ~std::uint64_t{0} / 16) return 0;
    value = value * 10 + static_cast<unsigned>(*text - '0');
  }
  return value;
}

// Too long a text is no text: half a path names something else.
void copy(char* to, std::size_t room, const char* from) noexcept {
  std::size_t n = 0;
  while (from[n] != 0 && n + 1 < room) {
    to[n] = from[n];
    ++n;
  }
  to[from[n] == 0 ? n : 0] = 0;
}

}  // namespace

Settings Settings::from_environment(const char* const* environment) noexcept {
  Settings out;
  if (environment == nullptr) return out;
  for (; *environment != nullptr; ++environment) {
    const char* entry = *environment;
    if (const char* ram = value_of(entry, kEnvRam)) out.ram_bytes = number(ram);
    if (const char* total = value_of(entry, kEnvTotal)) out.total_bytes = number(total);
    if (const char* device = value_of(entry, kEnvDevice)) copy(out.device, sizeof out.device, device);
    if (const char* process = value_of(entry, kEnvDeviceProcess)) {
      copy(out.device_process, sizeof out.device_process, process);
    }
    if (const char* stats = value_of(entry, kEnvStats)) copy(out.stats, sizeof out.stats, stats);
    if (const char* huge = value_of(entry, kEnvHugePages)) out.huge_pages = huge[0] != '0' || huge[1] != 0;
    if (const char* events = value_of(entry, kEnvEvents)) copy(out.events, sizeof out.events, events);
  }
  return out;
}

}  // namespace whimbrel
