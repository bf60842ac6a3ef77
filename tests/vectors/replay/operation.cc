#include "operation.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <optional>

namespace vectors {
namespace {

// Numbers of newer advice and flags; the C library's headers may be older than the kernel that runs the script.
constexpr int kMadvCold = 20, kMadvPageout = 21, kMadvPopulateRead = 22, kMadvPopulateWrite = 23, kMadvCollapse = 25,
              kMadvGuardInstall = 102, kMadvGuardRemove = 103, kMremapDontunmap = 4;

// Arguments, one letter each: n number, p protection, k kind of mapping, s page size wish, a advice, m way of
// moving, f file, h handle, x raw address, u raw page count, b raw pointer. '?' makes the rest optional.
struct Grammar {
  const char* name;
  Verb verb;
  const char* arguments;
};
constexpr Grammar kGrammar[] = {
    {"map", Verb::kMap, "nnpk?s"},
    {"unmap", Verb::kUnmap, "nn"},
    {"protect", Verb::kProtect, "nnp"},
    {"lock", Verb::kLock, "nn"},
    {"unlock", Verb::kUnlock, "nn"},
    {"advise", Verb::kAdvise, "nna"},
    {"remap", Verb::kRemap, "nnnnm"},
    {"mkfile", Verb::kMakeFile, "fnn"},
    {"fwrite", Verb::kWriteFile, "fnnn"},
    {"fread", Verb::kReadFile, "fnn"},
    {"trunc", Verb::kTruncate, "fn"},
    {"w", Verb::kWrite, "nnn?n"},
    {"r", Verb::kRead, "nn?n"},
    {"kread", Verb::kKernelRead, "nn"},
    {"kwrite", Verb::kKernelWrite, "nnn"},
    {"mincore", Verb::kMincore, "nn"},
    {"open", Verb::kOpen, "hn"},
    {"close", Verb::kClose, "h"},
    {"dup", Verb::kDup, "hh"},
    {"mapdev", Verb::kMapDevice, "hnnp"},
    {"todev", Verb::kToDevice, "hnn"},
    {"tosys", Verb::kToSystem, "hnn"},
    {"dread", Verb::kDeviceRead, "hnn"},
    {"dwrite", Verb::kDeviceWrite, "hnnn"},
    {"snap", Verb::kSnapshot, "hnn"},
    {"excl", Verb::kExclusive, "hnn"},
    {"chkexcl", Verb::kCheckExclusive, "hnn"},
    {"release", Verb::kRelease, "h"},
    {"flags", Verb::kFlags, "hn"},
    {"fail", Verb::kFail, "h"},
    {"ioctl", Verb::kIoctl, "hnxub"},
    {"fork", Verb::kFork, ""},
    {"child", Verb::kChild, ""},
    {"parent", Verb::kParent, ""},
    {"end", Verb::kEnd, ""},
    {"exit", Verb::kExit, ""},
};

struct Named {
  const char* name;
  int value;
};
constexpr Named kAdvice[] = {
    {"dontneed", MADV_DONTNEED},      {"free", MADV_FREE},
    {"collapse", kMadvCollapse},      {"popread", kMadvPopulateRead},
    {"popwrite", kMadvPopulateWrite}, {"cold", kMadvCold},
    {"pageout", kMadvPageout},        {"willneed", MADV_WILLNEED},
    {"hugepage", MADV_HUGEPAGE},      {"nohugepage", MADV_NOHUGEPAGE},
    {"dontfork", MADV_DONTFORK},      {"dofork", MADV_DOFORK},
    {"wipeonfork", MADV_WIPEONFORK},  {"keeponfork", MADV_KEEPONFORK},
    {"remove", MADV_REMOVE},          {"guard", kMadvGuardInstall},
    {"unguard", kMadvGuardRemove},
};
constexpr Named kRemapWays[] = {
    {"stay", 0},
    {"fixed", MREMAP_MAYMOVE | MREMAP_FIXED},
    {"dontunmap", MREMAP_MAYMOVE | MREMAP_FIXED | kMremapDontunmap},
};
constexpr Named kRawPointers[] = {
    {"buf", static_cast<int>(RawPointer::kBuffer)},
    {"null", static_cast<int>(RawPointer::kNull)},
    {"ro", static_cast<int>(RawPointer::kReadOnly)},
    {"noblock", static_cast<int>(RawPointer::kNoBlock)},
};

template <std::size_t N>
std::optional<int> find(const Named (&table)[N], const std::string& word) {
  const auto* entry = std::find_if(table, table + N, [&](const Named& named) { return word == named.name; });
  if (entry == table + N) return std::nullopt;
  return entry->value;
}

std::optional<long> to_number(const std::string& word) {
  char* end = nullptr;
  const long value = std::strtol(word.c_str(), &end, 0);
  if (word.empty() || *end != '\0') return std::nullopt;
  return value;
}

std::optional<int> to_protection(const std::string& word) {
  if (word.find_first_not_of("rwx-") != std::string::npos) return std::nullopt;
  const auto bit = [&](char letter, int value) { return word.find(letter) == std::string::npos ? 0 : value; };
  return bit('r', PROT_READ) | bit('w', PROT_WRITE) | bit('x', PROT_EXEC);
}

// anon, shanon, file:F[:FOFF], shfile:F[:FOFF]
std::optional<MapKind> to_map_kind(const std::string& word) {
  const bool shared = word.starts_with("sh");
  const std::string rest = shared ? word.substr(2) : word;
  MapKind kind{.flags = shared ? MAP_SHARED : MAP_PRIVATE};
  if (rest == "anon") {
    kind.flags |= MAP_ANONYMOUS;
    return kind;
  }
  if (!rest.starts_with("file:") || rest.size() < 6 || rest[5] < '0' || rest[5] > '9') return std::nullopt;
  kind.file = rest[5] - '0';
  if (rest.size() == 6) return kind;
  const auto offset = rest[6] == ':' ? to_number(rest.substr(7)) : std::nullopt;
  if (!offset) return std::nullopt;
  kind.file_offset = *offset;
  return kind;
}

// OFF, OFF+BYTES or =0xABSOLUTE
std::optional<RawAddress> to_raw_address(const std::string& word) {
  char* end = nullptr;
  if (word[0] == '=') {
    const RawAddress address{.absolute = true, .value = std::strtoull(word.c_str() + 1, &end, 0)};
    return *end == '\0' ? std::optional(address) : std::nullopt;
  }
  const long page = std::strtol(word.c_str(), &end, 0);
  RawAddress address{.value = static_cast<std::uint64_t>(page) * 4096};
  if (*end == '+') address.value += static_cast<std::uint64_t>(std::strtol(end + 1, &end, 0));
  return *end == '\0' ? std::optional(address) : std::nullopt;
}

// Converts one argument; false when it is not what the letter stands for.
bool convert(char letter, const std::string& word, std::size_t index, Operation& operation) {
  const auto set = [&](auto value) {
    if (value) operation.number[index] = *value;
    return value.has_value();
  };
  switch (letter) {
    case 'n':
      return set(to_number(word));
    case 'p':
      return set(to_protection(word));
    case 'a':
      return set(find(kAdvice, word));
    case 'm':
      return set(find(kRemapWays, word));
    case 'f':
      return word.size() == 1 && word[0] >= '0' && word[0] <= '9' && set(to_number(word));
    case 'h':
      operation.number[index] = word[0] - 'a';
      return word.size() == 1 && word[0] >= 'a' && word[0] <= 'h';
    case 's':
      operation.huge = word == "huge";
      operation.nohuge = word == "nohuge";
      return operation.huge || operation.nohuge;
    case 'k': {
      const auto kind = to_map_kind(word);
      operation.kind = kind.value_or(MapKind{});
      return kind.has_value();
    }
    case 'x': {
      const auto address = to_raw_address(word);
      operation.raw_address = address.value_or(RawAddress{});
      return address.has_value();
    }
    case 'u': {
      char* end = nullptr;
      operation.raw_pages = std::strtoull(word.c_str(), &end, 0);
      return *end == '\0';
    }
    case 'b': {
      const auto pointer = find(kRawPointers, word);
      if (pointer) operation.raw_pointer = static_cast<RawPointer>(*pointer);
      return pointer.has_value();
    }
    default:
      return false;
  }
}

}  // namespace

std::vector<std::string> split_words(std::string_view line) {
  std::vector<std::string> words;
  constexpr std::string_view kBlanks = " \t\r";
  for (std::size_t at = line.find_first_not_of(kBlanks); at != std::string_view::npos;) {
    const std::size_t end = std::min(line.find_first_of(kBlanks, at), line.size());
    words.emplace_back(line.substr(at, end - at));
    at = line.find_first_not_of(kBlanks, end);
  }
  return words;
}

std::expected<Operation, std::string> parse_operation(std::string_view line, int line_number) {
  const std::vector<std::string> words = split_words(line);
  if (words.empty()) return std::unexpected("no operation");
  const auto* grammar =
      std::find_if(std::begin(kGrammar), std::end(kGrammar), [&](const Grammar& g) { return words[0] == g.name; });
  if (grammar == std::end(kGrammar)) return std::unexpected("unknown operation '" + words[0] + "'");

  Operation operation;
  operation.verb = grammar->verb;
  operation.line = line_number;
  operation.words = words.size();
  operation.text = words[0];
  std::size_t index = 1;
  bool optional = false;
  for (const char* letter = grammar->arguments; *letter != '\0'; letter++) {
    if (*letter == '?') {
      optional = true;
      continue;
    }
    if (index == words.size()) {
      if (optional) break;
      return std::unexpected("'" + words[0] + "' needs more arguments");
    }
    if (!convert(*letter, words[index], index, operation)) {
      return std::unexpected("'" + words[index] + "' cannot be argument " + std::to_string(index) + " of '" + words[0] +
                             "'");
    }
    operation.text += " " + words[index++];
  }
  if (index != words.size()) return std::unexpected("'" + words[0] + "' has too many arguments");
  return operation;
}

bool is_device(Verb verb) { return verb >= Verb::kOpen && verb <= Verb::kIoctl; }

bool is_seen_by_program(Verb verb) { return !is_device(verb) && verb != Verb::kMincore; }

const char kLanguageHelp[] =
    "All positions and lengths are in 4 KiB pages, relative to a window of 16384 pages (64 MiB) that starts at a\n"
    "2 MiB-aligned address and is unmapped at first. '#' starts a comment. VAL is a number 1..65535: the content of a\n"
    "written page is a pattern made of VAL and of the page's position, so that output can name what a page holds.\n"
    "\n"
    "Address space\n"
    "  map OFF N PROT KIND [huge|nohuge]     PROT: letters of rwx, or -   KIND: anon, shanon,\n"
    "                                        file:F[:FOFF], shfile:F[:FOFF]   (F: a file made by mkfile)\n"
    "  unmap OFF N | protect OFF N PROT | lock OFF N | unlock OFF N\n"
    "  advise OFF N HOW                      dontneed free collapse popread popwrite cold pageout willneed hugepage\n"
    "                                        nohugepage dontfork dofork wipeonfork keeponfork remove guard unguard\n"
    "  remap OFF N NEWOFF NEWN HOW           HOW: stay, fixed, dontunmap\n"
    "  mkfile F N VAL | fwrite F OFF N VAL | fread F OFF N | trunc F N      files in memory; VAL 0 = zeros\n"
    "CPU\n"
    "  w OFF N VAL [STEP]                    write whole pages OFF, OFF+STEP, .. (N of them)\n"
    "  r OFF N [STEP]                        read whole pages\n"
    "  kread OFF N | kwrite OFF N VAL        the kernel reads/writes the pages for us (pwrite/pread on a file)\n"
    "  mincore OFF N\n"
    "Device (H: a letter a..h naming an open; D: node number)\n"
    "  open H D | close H | dup H H2 | mapdev H OFF N PROT\n"
    "  todev H OFF N | tosys H OFF N | dread H OFF N | dwrite H OFF N VAL | snap H OFF N\n"
    "  excl H OFF N | chkexcl H OFF N | release H | flags H VALUE | fail H      (fail = flags 1)\n"
    "  ioctl H NR ADDR NPAGES PTR            raw command: ADDR is OFF, OFF+BYTES or =0xABS; NPAGES may be 0x...;\n"
    "                                        PTR: buf, null, ro, noblock (the command block itself is unreadable)\n"
    "Processes\n"
    "  fork                                  followed by sections 'child' and 'parent', closed by 'end'. Sections run\n"
    "  child / parent                        strictly in the order written, each in its process. The child exits "
    "after\n"
    "  end                                   its last section; parent sections after that run when it is gone.\n"
    "  exit                                  this process ends here; the next section of its child still runs\n"
    "\n"
    "Result words: 'ok', an errno name, SEGV or BUS, and run-length lists such as '22*512 00*3'. Page contents:\n"
    "0 = zeros, vK = the pattern VAL K of this position, vK@D = that pattern but of the position D pages earlier,\n"
    "junk = anything else.\n";

}  // namespace vectors
