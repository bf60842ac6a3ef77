// One operation of a script: a verb and its arguments, checked and converted when the script is read, so that
// nothing can be wrong with it any more when it runs.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <vector>

namespace vectors {

enum class Verb : std::uint8_t {
  // address space
  kMap,
  kUnmap,
  kProtect,
  kLock,
  kUnlock,
  kAdvise,
  kRemap,
  // files in memory
  kMakeFile,
  kWriteFile,
  kReadFile,
  kTruncate,
  // CPU
  kWrite,
  kRead,
  kKernelRead,
  kKernelWrite,
  kMincore,
  // device
  kOpen,
  kClose,
  kDup,
  kMapDevice,
  kToDevice,
  kToSystem,
  kDeviceRead,
  kDeviceWrite,
  kSnapshot,
  kExclusive,
  kCheckExclusive,
  kRelease,
  kFlags,
  kFail,
  kIoctl,
  // processes
  kFork,
  kChild,
  kParent,
  kEnd,
  kExit,
};

// What a mapping is made of.
struct MapKind {
  int flags = 0;         // MAP_PRIVATE or MAP_SHARED, with MAP_ANONYMOUS when there is no file
  int file = -1;         // number of the file in memory
  long file_offset = 0;  // in pages
};

// Address of a raw command: relative to the window, or absolute.
struct RawAddress {
  bool absolute = false;
  std::uint64_t value = 0;  // bytes
};

enum class RawPointer : std::uint8_t { kBuffer, kNull, kReadOnly, kNoBlock };

struct Operation {
  static constexpr std::size_t kMaxWords = 8;

  Verb verb = Verb::kExit;
  int line = 0;      // in the script, from 1
  std::string text;  // words separated by single blanks; this is what the replayer echoes
  std::size_t words = 0;
  // Converted arguments by word (0 is the verb): numbers; handles a..h as 0..7; protections, advice and remap
  // flags as the system call takes them.
  std::array<long, kMaxWords> number{};
  bool huge = false;    // map ... huge
  bool nohuge = false;  // map ... nohuge
  MapKind kind;
  RawAddress raw_address;
  std::uint64_t raw_pages = 0;
  RawPointer raw_pointer = RawPointer::kBuffer;
};

// Parses one line without its comment. The error says what is wrong, without the line number.
[[nodiscard]] std::expected<Operation, std::string> parse_operation(std::string_view line, int line_number);

// Splits at blanks and tabs.
[[nodiscard]] std::vector<std::string> split_words(std::string_view line);

// What may differ from a record for a documented reason: nothing of what the program itself sees, only what
// describes the device. mincore counts as the latter.
[[nodiscard]] bool is_seen_by_program(Verb verb);

// Whether the verb talks to a device.
[[nodiscard]] bool is_device(Verb verb);

// Usage text: every verb with its arguments.
extern const char kLanguageHelp[];

}  // namespace vectors
