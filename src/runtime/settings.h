// What `whimbrel run` tells the library in every process below it, by environment variables:
//
//   LD_PRELOAD        the library, before whatever was there
//   WHIMBREL_RAM      budget for resident, uncompressed memory: bytes in decimal; 0 or absent: none
//   WHIMBREL_TOTAL    budget for resident + store + staging + whimbrel's own: bytes; 0 or absent: none
//   WHIMBREL_DEVICE   where pages go, as `run --device` takes it
//   WHIMBREL_DEVICE_PROCESS  address of the device process, for devices that it stands behind; absent: there is none
//   WHIMBREL_STATS    path of the statistics file (stats_file.h)
//   WHIMBREL_EVENTS   path of the event file (event_file.h); absent: no events are recorded
//   WHIMBREL_HUGE_PAGES  0: streams of the program are not given 2 MiB pages; absent or anything else: they are
//
// And variables for programs that open sessions:
//
//   WHIMBREL_WATCH    path of the statistics file of a `whimbrel watch`, in which sessions take part; beside it, with ".events"
//                     at its end, the event file, if events are wanted
//   WHIMBREL_RUNG     guarded: as where userfaultfd is not to be had; userfaultfd: an error rather than that; absent: the best
//
// A process without WHIMBREL_RAM and WHIMBREL_TOTAL is left alone.
#pragma once

#include <cstdint>

namespace whimbrel {

inline constexpr const char* kEnvRam = "WHIMBREL_RAM";
inline constexpr const char* kEnvTotal = "WHIMBREL_TOTAL";
inline constexpr const char* kEnvDevice = "WHIMBREL_DEVICE";
inline constexpr const char* kEnvDeviceProcess = "WHIMBREL_DEVICE_PROCESS";
inline constexpr const char* kEnvStats = "WHIMBREL_STATS";
inline constexpr const char* kEnvEvents = "WHIMBREL_EVENTS";
inline constexpr const char* kEnvHugePages = "WHIMBREL_HUGE_PAGES";
inline constexpr const char* kEnvWatch = "WHIMBREL_WATCH";
inline constexpr const char* kEventsSuffix = ".events";
inline constexpr const char* kEnvRung = "WHIMBREL_RUNG";

// Copies, since the program may overwrite its environment and its memory may be away when we look.
struct Settings {
  std::uint64_t ram_bytes = 0;
  std::uint64_t total_bytes = 0;
  // False: only what the program names is managed, from the start on; for programs that use the engine knowingly.
  bool whole_process = true;
  bool huge_pages = true;
  // Sessions only: the way memory is managed. kBest: the first that works; kUserfaultfd: none that system calls would notice.
  enum class Rung : std::uint8_t { kBest, kUserfaultfd, kGuarded };
  Rung rung = Rung::kBest;
  std::uint32_t session = 0;  // its number in this process, from 1; 0: no session
  char device[1280] = {};
  char device_process[160] = {};
  char stats[512] = {};
  char events[512] = {};

  [[nodiscard]] bool active() const noexcept { return ram_bytes != 0 || total_bytes != 0; }
  // From a process's environment block. Malformed numbers count as absent; nothing is allocated.
  [[nodiscard]] static Settings from_environment(const char* const* environment) noexcept;
};

}  // namespace whimbrel
