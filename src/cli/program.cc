#include "cli/program.h"

#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>

#include "cli/elf_file.h"

namespace whimbrel::cli {
namespace {

constexpr int kMostInterpreters = 5;  // as many as the kernel follows

bool is_executable_file(const std::string& path) {
  struct stat info{};
  return stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && access(path.c_str(), X_OK) == 0;
}

// The interpreter of a "#!" line; empty when the file has none.
std::string interpreter_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string line(256, '\0');
  file.read(line.data(), static_cast<std::streamsize>(line.size()));
  line.resize(static_cast<std::size_t>(file.gcount()));
  if (!line.starts_with("#!")) return {};
  line.resize(std::min(line.find('\n'), line.size()));
  const std::size_t begin = line.find_first_not_of(" \t", 2);
  if (begin == std::string::npos) return {};
  return line.substr(begin, line.find_first_of(" \t", begin) - begin);
}

// Why the loader would not load our library into this file because of extra rights it carries; empty: it would.
std::string extra_rights(const std::string& path) {
  struct stat info{};
  if (stat(path.c_str(), &info) != 0) return {};
  if ((info.st_mode & S_ISUID) != 0 && info.st_uid != geteuid()) return "it is a setuid program";
  if ((info.st_mode & S_ISGID) != 0 && (info.st_mode & S_IXGRP) != 0 && info.st_gid != getegid()) {
    return "it is a setgid program";
  }
  if (geteuid() != 0 && getxattr(path.c_str(), "security.capability", nullptr, 0) > 0) {
    return "it carries file capabilities";
  }
  return {};
}

void refuse(ProgramReport& report, std::string reason, std::string advice) {
  report.verdict = Manageable::kNo;
  report.reason = std::move(reason);
  report.advice = std::move(advice);
}

void judge_elf(ProgramReport& report, const ElfFacts& elf, const std::string& path) {
  if (!elf.is_64_bit || !elf.is_x86_64) {
    return refuse(report, path + " is not built for 64-bit x86, as whimbrel is", "use an x86-64 build of it");
  }
  if (!elf.is_program) {
    report.verdict = Manageable::kNotExecutable;
    report.reason = path + " is an ELF file, but not a program";
    report.advice = "name a program";
    return;
  }
  if (elf.loader.empty() && elf.is_go) {
    return refuse(report, path + " is a Go program without libc, so no library can be loaded into it",
                  "rebuild it with CGO_ENABLED=1 and -linkmode=external, or limit it with GOMEMLIMIT");
  }
  if (elf.loader.empty()) {
    return refuse(report, path + " is statically linked, so no library can be loaded into it",
                  "use a dynamically linked build of it");
  }
  if (elf.loader.find("ld-musl") != std::string::npos) {
    return refuse(report, path + " uses musl; whimbrel's library needs the GNU C library",
                  "use a build of it for the GNU C library");
  }
  if (const std::string rights = extra_rights(path); !rights.empty()) {
    return refuse(report, "the loader ignores LD_PRELOAD for " + path + ": " + rights,
                  "run it as the user it would become, or a copy of it without the extra rights");
  }
  report.verdict = Manageable::kYes;
}

}  // namespace

std::string find_program(std::string_view name) {
  if (name.empty()) return {};
  if (name.find('/') != std::string_view::npos) {
    return access(std::string(name).c_str(), F_OK) == 0 ? std::string(name) : std::string();
  }
  const char* path = std::getenv("PATH");
  std::string_view rest = path != nullptr ? path : "/bin:/usr/bin";
  std::string found;  // a file of that name that may not be executed, when there is nothing better
  for (;;) {
    const std::size_t colon = std::min(rest.find(':'), rest.size());
    std::string candidate = colon == 0 ? std::string(".") : std::string(rest.substr(0, colon));
    candidate.append("/").append(name);
    if (is_executable_file(candidate)) return candidate;
    if (found.empty() && access(candidate.c_str(), F_OK) == 0) found = candidate;
    if (colon == rest.size()) return found;
    rest.remove_prefix(colon + 1);
  }
}

ProgramReport inspect_program(std::string_view name) {
  ProgramReport report;
  report.path = find_program(name);
  if (report.path.empty()) {
    report.reason = "there is no program '" + std::string(name) + "'";
    report.advice = name.find('/') == std::string_view::npos ? "check the spelling, or give its full path"
                                                             : "check the path";
    return report;
  }
  std::string file = report.path;
  for (int depth = 0; depth <= kMostInterpreters; ++depth) {
    if (!is_executable_file(file)) {
      report.verdict = Manageable::kNotExecutable;
      struct stat info{};
      const bool exists = stat(file.c_str(), &info) == 0;
      report.reason = file + (!exists                  ? " (the interpreter of the script) does not exist"
                              : S_ISDIR(info.st_mode) ? " is a directory"
                                                       : " may not be executed");
      report.advice = exists && S_ISREG(info.st_mode) ? "chmod +x " + file : "name a program";
      return report;
    }
    if (const auto elf = read_elf(file)) {
      judge_elf(report, *elf, file);
      return report;
    }
    if (access(file.c_str(), R_OK) != 0) {  // execute-only: cannot look inside, so let it try
      report.verdict = Manageable::kYes;
      return report;
    }
    std::string interpreter = interpreter_of(file);
    if (interpreter.empty()) {
      report.verdict = Manageable::kNotExecutable;
      report.reason = file + " is neither an ELF program nor a script with a #! line";
      report.advice = "if it is a shell script, run it as: sh " + file;
      return report;
    }
    report.interpreter = interpreter;
    file = std::move(interpreter);
  }
  report.verdict = Manageable::kNotExecutable;
  report.reason = report.path + " is a script whose interpreters never end in a program";
  report.advice = "check its #! line";
  return report;
}

}  // namespace whimbrel::cli
