#include "cli/live_stats.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cli/printable.h"

namespace whimbrel::cli {
namespace {

// A directory of ours below `parent` that nobody else can put anything into; empty when it cannot be had.
std::string private_directory(const std::string& parent) {
  const std::string path = parent + "/whimbrel-" + std::to_string(geteuid());
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return {};
  struct stat info{};
  if (lstat(path.c_str(), &info) != 0 || !S_ISDIR(info.st_mode) || info.st_uid != geteuid()) return {};
  if ((info.st_mode & 077) != 0 && chmod(path.c_str(), 0700) != 0) return {};
  return path;
}

std::vector<std::string> parents() {
  std::vector<std::string> out;
  if (const char* runtime = std::getenv("XDG_RUNTIME_DIR"); runtime != nullptr && runtime[0] == '/') out.emplace_back(runtime);
  out.insert(out.end(), {"/dev/shm", "/tmp"});
  return out;
}

}  // namespace

void LiveStats::remove() {
  if (!path_.empty()) unlink(path_.c_str());
  path_.clear();
}

bool LiveStats::create(const StatsFile::Limits& limits, std::string* problem) {
  for (const std::string& parent : parents()) {
    const std::string directory = private_directory(parent);
    if (directory.empty()) continue;
    const std::string path = directory + "/run-" + std::to_string(getpid());
    unlink(path.c_str());  // of an earlier process with our number, killed before it could
    const Result<StatsFile> made = StatsFile::create(path.c_str(), limits);
    if (made) {
      file_ = *made;
      path_ = path;
      return true;
    }
    *problem = "cannot create " + path + ": " + std::strerror(made.error().sys);
  }
  if (problem->empty()) *problem = "no directory for the statistics file (tried XDG_RUNTIME_DIR, /dev/shm, /tmp)";
  return false;
}

void LiveStats::print_messages() {
  const std::uint32_t posted = file_.layout().header.next_message.load(std::memory_order_acquire);
  if (posted - next_message_ > kStatsMessages) next_message_ = posted - static_cast<std::uint32_t>(kStatsMessages);  // overwritten meanwhile
  for (; next_message_ != posted; ++next_message_) {
    char text[248];
    std::uint32_t pid = 0;
    if (!file_.message(next_message_, text, &pid)) break;
    std::string line = text;
    if (const std::size_t next = line.find("; next: "); next != std::string::npos) line.replace(next, 2, "\n  ");
    while (line.ends_with('\n')) line.pop_back();
    if (line.starts_with("whimbrel: ")) line.erase(0, 10);
    const std::size_t second = line.find('\n');
    const std::string advice = second == std::string::npos ? "" : "\n" + printable(line.substr(second + 1));
    std::fprintf(stderr, "whimbrel: process %u: %s%s\n", pid, printable(line.substr(0, second)).c_str(), advice.c_str());
  }
}

}  // namespace whimbrel::cli
