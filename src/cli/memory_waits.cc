#include "cli/memory_waits.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

namespace whimbrel::cli {
namespace {

// Where a thread sleeps that has touched a page which a userfaultfd is to bring.
constexpr std::string_view kWaitsForUserfault = "handle_userfault";
// Most threads looked at: a look at more would cost more than it is worth.
constexpr int kMostThreads = 4096;

bool waits_for_memory(const std::string& task) {
  std::ifstream file(task + "/wchan");
  std::string place;
  return std::getline(file, place) && place == kWaitsForUserfault;
}

// proc(5), status: how often the thread has gone to sleep by itself.
std::optional<std::uint64_t> sleeps_of(const std::string& task) {
  constexpr std::string_view kName = "voluntary_ctxt_switches:";
  std::ifstream file(task + "/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(kName)) return std::strtoull(line.c_str() + kName.size(), nullptr, 10);
  }
  return std::nullopt;
}

}  // namespace

void MemoryWaits::note(std::uint32_t thread, std::uint64_t switches, Time now) {
  Wait& wait = waits_[thread];
  if (wait.seen == Time{} || wait.switches != switches) wait = {.switches = switches, .since = now};
  if (wait.woken) wait.not_ours = true;  // slept through the wake
  wait.seen = now;
}

MemoryWaits::Found MemoryWaits::look(std::uint32_t pid, std::initializer_list<std::uint32_t> engine, Time now,
                                     std::chrono::steady_clock::duration patience, bool idle) {
  const std::string tasks = "/proc/" + std::to_string(pid) + "/task";
  const std::unordered_map<std::uint32_t, Wait> before = waits_;
  std::error_code error;
  int left = kMostThreads;
  for (std::filesystem::directory_iterator at(tasks, error), end; !error && at != end && left-- > 0; at.increment(error)) {
    const std::string name = at->path().filename();
    std::uint32_t thread = 0;
    std::from_chars(name.data(), name.data() + name.size(), thread);
    if (std::find(engine.begin(), engine.end(), thread) != engine.end()) continue;
    const std::string task = at->path();
    if (!waits_for_memory(task)) continue;
    if (const std::optional<std::uint64_t> switches = sleeps_of(task)) note(thread, *switches, now);
  }
  Found found;
  // A wait that the wake has ended: it was ours, and somebody had lost it.
  for (const auto& [thread, wait] : before) {
    const auto same = waits_.find(thread);
    if (!wait.woken || wait.not_ours || (same != waits_.end() && same->second.seen == now)) continue;
    found.helped = thread;
    found.waited = std::max(found.waited, now - wait.since);
  }
  std::erase_if(waits_, [now](const auto& entry) { return entry.second.seen != now; });
  for (auto& [thread, wait] : waits_) {
    if (!idle || wait.not_ours || now - wait.since < patience) continue;
    wait.woken = true;
    found.rewake = true;
  }
  return found;
}

}  // namespace whimbrel::cli
