// What whimbrel writes to the beginning of an export, to find it again: who uses it, and that he still does.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "device_process/export.h"

namespace whimbrel::device_process {

struct MarkText {
  char magic[24];
  std::uint8_t run[16];  // a random number
  std::uint64_t beat;    // moves while the export is in use
};
inline constexpr char kMarkMagic[24] = "whimbrel pages in use\n";

struct Export::Mark {
  alignas(4096) std::array<std::byte, kMarkBytes> read;  // what was found
  alignas(4096) std::array<std::byte, 4096> block;       // what is written
  MarkText text{};
};

}  // namespace whimbrel::device_process
