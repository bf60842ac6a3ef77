#include "cli/live_runs.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>
#include <string_view>

#include "cli/printable.h"

namespace whimbrel::cli {
namespace {

constexpr std::uint64_t kPage = 4096;

bool is_alive(std::uint32_t pid) { return kill(static_cast<pid_t>(pid), 0) == 0 || errno == EPERM; }

template <std::size_t kRoom>
std::string text_of(const std::array<std::atomic<char>, kRoom>& from) {
  std::string text;
  for (const auto& c : from) {
    if (c.load() == 0) break;
    text += c.load();
  }
  return printable(text);
}

ProcessSample read_slot(const StatsSlot& slot) {
  ProcessSample out;
  const PagerStats& pager = slot.pager;
  out.pid = slot.pid;
  out.parent = slot.parent_pid;
  out.session = slot.session;
  out.device = text_of(slot.device);
  out.ram_limit_bytes = slot.ram_limit_bytes;
  out.total_limit_bytes = slot.total_limit_bytes;
  out.name = text_of(slot.name);
  out.mode = slot.mode;
  const bool managed = out.mode == EngineMode::kManaged;
  out.resident_bytes = managed ? pager.resident_pages * kPage : slot.anonymous_bytes.load();
  out.limit_bytes = pager.resident_limit_pages * kPage;
  out.away_bytes = slot.stored_pages * kPage;
  out.held_bytes = slot.held_bytes;
  out.total_bytes = managed ? pager.total_bytes.load() : out.resident_bytes;
  out.pages_out = pager.pages_out;
  out.pages_home = pager.pages_home;
  out.faults = pager.faults;
  out.fresh_faults = pager.holes;
  out.wait_ns = pager.wait_ns;
  out.over_limit = pager.over_limit;
  out.refused_pages = pager.refused_pages;
  out.device_errors = pager.device_errors;
  out.load_errors = pager.load_errors;
  out.device_change = slot.device_change;
  out.device_refused = slot.device_refused;
  out.leaving_bytes = slot.leaving_pages * kPage;
  for (std::size_t i = 0; i < kWaitBuckets; ++i) out.waits[i] = pager.wait_histogram[i];
  return out;
}

RunSample read_run(int pid, const StatsFile& file) {
  RunSample run;
  run.pid = pid;
  const StatsHeader& header = file.layout().header;
  run.ram_limit_bytes = header.ram_limit_bytes;
  run.total_limit_bytes = header.total_limit_bytes;
  std::array<char, kStatsDevice> device;
  for (int tries = 0; !file.device(device, &run.device_changes) && tries < 1000; ++tries) {
  }
  run.device = printable(device.data());
  const std::uint32_t used = std::min<std::uint32_t>(header.next_slot, static_cast<std::uint32_t>(kStatsSlots));
  for (std::uint32_t i = 0; i < used; ++i) {
    const StatsSlot& slot = file.layout().slots[i];
    if (slot.state == SlotState::kLive && slot.mode != EngineMode::kEnded && is_alive(slot.pid)) run.processes.push_back(read_slot(slot));
  }
  // A process that became another program has a slot for each: the last one counts.
  for (auto it = run.processes.begin(); it != run.processes.end();) {
    const bool replaced =
        std::any_of(it + 1, run.processes.end(), [&](const ProcessSample& p) { return p.pid == it->pid && p.session == it->session; });
    it = replaced ? run.processes.erase(it) : it + 1;
  }
  return run;
}

}  // namespace

std::vector<std::string> stats_directories() {
  namespace fs = std::filesystem;
  std::set<std::string> out;
  const std::string own = "whimbrel-" + std::to_string(geteuid());
  std::vector<std::string> parents{"/dev/shm", "/tmp"};
  if (const char* runtime = std::getenv("XDG_RUNTIME_DIR"); runtime != nullptr && runtime[0] == '/')
    parents.emplace_back(runtime);
  for (const std::string& parent : parents) out.insert(parent + "/" + own);
  std::error_code error;
  if (geteuid() == 0) {
    for (const fs::directory_entry& user : fs::directory_iterator("/run/user", error)) parents.push_back(user.path());
    for (const std::string& parent : parents) {
      for (const fs::directory_entry& entry : fs::directory_iterator(parent, error)) {
        if (entry.path().filename().string().starts_with("whimbrel-")) out.insert(entry.path());
      }
    }
  }
  return {out.begin(), out.end()};
}

Sample sample_runs(const std::vector<std::string>& directories) {
  namespace fs = std::filesystem;
  Sample out;
  out.time_ns = std::chrono::steady_clock::now().time_since_epoch().count();
  for (const std::string& directory : directories) {
    std::error_code error;
    for (const fs::directory_entry& entry : fs::directory_iterator(directory, error)) {
      const std::string name = entry.path().filename();
      int pid = 0;
      const char* const end = name.data() + name.size();
      if (!name.starts_with("run-") || std::from_chars(name.data() + 4, end, pid).ptr != end) continue;
      if (!is_alive(static_cast<std::uint32_t>(pid))) continue;  // killed before it could remove its file
      Result<StatsFile> file = StatsFile::open(entry.path().c_str());
      if (!file) {
        // Anything else is somebody else's.
        if (file.error().code == Errc::kInvalid) ++out.of_other_versions;
        continue;
      }
      out.runs.push_back(read_run(pid, *file));
      out.runs.back().path = entry.path();
      file->unmap();
    }
  }
  std::sort(out.runs.begin(), out.runs.end(), [](const RunSample& a, const RunSample& b) { return a.pid < b.pid; });
  return out;
}

std::uint64_t wait_quantile(const std::array<std::uint64_t, kWaitBuckets>& waits, double share) {
  std::uint64_t all = 0;
  for (const std::uint64_t n : waits) all += n;
  if (all == 0) return 0;
  std::uint64_t seen = 0;
  for (std::size_t i = 0; i < waits.size(); ++i) {
    seen += waits[i];
    if (static_cast<double>(seen) >= share * static_cast<double>(all)) return std::uint64_t{2} << i;
  }
  return std::uint64_t{1} << waits.size();
}

std::optional<RunSample> find_run(unsigned pid) {
  Sample sample = sample_runs(stats_directories());
  for (RunSample& run : sample.runs) {
    const bool inside = std::any_of(run.processes.begin(), run.processes.end(), [&](const ProcessSample& p) { return p.pid == pid; });
    if (run.pid == static_cast<int>(pid) || inside) return std::optional(std::move(run));
  }
  return std::nullopt;
}

}  // namespace whimbrel::cli
