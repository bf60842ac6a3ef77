// ProcessImage: what code lies where in a process, and the way from a sample to the functions that were on the stack, by the unwind
// tables of the files (libdw).
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "stacks/perf_stream.h"

struct Dwfl;

namespace whimbrel::stacks {

// A place in a file's code, in the file's own addresses; so it means the same in every process.
struct Frame {
  std::uint32_t file = 0;  // FileNames; 0: code that belongs to no file
  std::uint64_t address = 0;
  [[nodiscard]] auto operator<=>(const Frame&) const = default;
};

// Numbers for paths.
class FileNames {
 public:
  [[nodiscard]] std::uint32_t number_of(const std::string& path);
  [[nodiscard]] const std::string& path(std::uint32_t number) const { return paths_[number]; }

 private:
  std::vector<std::string> paths_{""};
};

class ProcessImage {
 public:
  ProcessImage() = default;
  ~ProcessImage();
  // The same code; shares nothing.
  ProcessImage(const ProcessImage& other) : mappings_(other.mappings_) {}
  ProcessImage& operator=(const ProcessImage&) = delete;

  void add(std::uint64_t address, std::uint64_t length, std::uint64_t file_offset, const std::string& path);
  // The innermost function first; addresses of calls, not of returns. Empty: nothing is known of the place.
  [[nodiscard]] std::vector<Frame> unwind(const PerfRecord& sample, FileNames& files);

  static constexpr std::size_t kMostFrames = 48;

 private:
  struct Mapping {
    std::uint64_t address, length, file_offset;
    std::string path;
  };
  [[nodiscard]] bool prepare();
  void close();

  std::vector<Mapping> mappings_;
  Dwfl* dwfl_ = nullptr;
  bool useless_ = false;  // libdw makes nothing of it
  const PerfRecord* current_ = nullptr;
  friend struct UnwindCallbacks;
};

}  // namespace whimbrel::stacks
