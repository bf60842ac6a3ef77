// Runs a script: calls what each operation stands for and prints what came of it.
//
// Uses nothing but the C library's open, ioctl, mmap, close, fork and the like, so that a preloaded library sees every
// call. Not thread-safe; one per process and its children.
#pragma once

#include <array>
#include <string>

#include "output.h"
#include "script.h"
#include "tests/mirror/dmirror_abi.h"

namespace vectors {

struct ReplayOptions {
  std::string device_prefix = DMIRROR_DEFAULT_PREFIX;
  // Operations that are echoed as "skipped" instead of being run. What is left is what a program sees of its memory,
  // which must not depend on whether there are devices.
  bool skip_devices = false;
  bool skip_device_writes = false;
};

class Replayer {
 public:
  explicit Replayer(ReplayOptions options);

  // Returns in the process that called it only: children that the script made end inside.
  void run(const Script& script);

 private:
  void run_block(const Block& block);
  void run_operation(const Operation& operation);

  // Fork blocks (fork_blocks.cc).
  void run_fork(const Operation& operation, const Fork& fork);

  // Address space and CPU (memory_operations.cc).
  void run_memory_operation(const Operation& operation);
  void map(const Operation& operation);
  void remap(const Operation& operation);
  void change_range(const Operation& operation);
  void access(const Operation& operation);
  void kernel_copy(const Operation& operation);
  void mincore(const Operation& operation);
  void use_file(const Operation& operation);

  // Devices (device_operations.cc).
  void run_device_operation(const Operation& operation);
  void open_node(const Operation& operation);
  void snapshot(const Operation& operation);
  void raw_command(const Operation& operation);
  void move_data(const Operation& operation);
  void plain_command(const Operation& operation);

  ReplayOptions options_;
  Output out_;
  int depth_ = 0;  // of nested children, for the indentation
  std::array<int, 8> handles_;
  std::array<int, 10> files_;
};

}  // namespace vectors
