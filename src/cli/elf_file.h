// The few facts about an ELF file that decide whether a library can be loaded into it.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace whimbrel::cli {

struct ElfFacts {
  bool is_64_bit = false;
  bool is_x86_64 = false;
  bool is_program = false;            // executable or position-independent executable
  std::string loader;                 // PT_INTERP; empty: static
  bool is_go = false;                 // built by the Go toolchain
  std::vector<std::string> needed;    // DT_NEEDED
};

// Nothing when the file cannot be read or is not ELF.
[[nodiscard]] std::optional<ElfFacts> read_elf(const std::string& path);

}  // namespace whimbrel::cli
