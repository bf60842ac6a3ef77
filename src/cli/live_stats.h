// The statistics file of a run in progress: created for it, removed after it.
//
// It lies where shared mappings never wait for a disk: in the user's run-time directory or /dev/shm, in a directory of
// the user's own (mode 0700), named after the process id of `whimbrel run`.
#pragma once

#include <string>

#include "runtime/stats_file.h"

namespace whimbrel::cli {

class LiveStats {
 public:
  LiveStats() = default;
  ~LiveStats() { remove(); }
  LiveStats(const LiveStats&) = delete;
  LiveStats& operator=(const LiveStats&) = delete;

  // False: `problem` says why.
  [[nodiscard]] bool create(const StatsFile::Limits& limits, std::string* problem);
  [[nodiscard]] const std::string& path() const { return path_; }
  [[nodiscard]] const StatsFile& file() const { return file_; }
  // Removes the file; processes that still have it mapped are not disturbed.
  void remove();
  // Prints messages of the engines that have not been printed yet to standard error.
  void print_messages();

 private:
  std::string path_;
  StatsFile file_;
  std::uint32_t next_message_ = 0;
};

}  // namespace whimbrel::cli
