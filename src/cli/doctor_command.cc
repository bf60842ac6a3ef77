// whimbrel doctor: what this kernel and this user may do, what is lost, and what would fix it.
#include <fmt/format.h>

#include <cstdio>
#include <cstring>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "cli/preload_library.h"
#include "cli/program.h"
#include "linux/guarded_mmu.h"
#include "linux/probe.h"
#include "linux/reservation.h"

namespace whimbrel::cli {
namespace {

enum class Verdict : int { kUsable = 0, kRestricted = 1, kUnusable = 2 };

bool is_rung(const ProbeRow& row) {
  return row.id == ProbeId::kRungSystemCall || row.id == ProbeId::kRungDevice || row.id == ProbeId::kRungUserMode ||
         row.id == ProbeId::kGuardedArenas;
}

// Rungs that are not used are alternatives: that one of them is missing costs nothing.
bool is_lost(const ProbeRow& row) { return !row.works && row.weight == ProbeRow::Weight::kHelps && !is_rung(row); }

// The one that a session would use.
const char* chosen_rung(const ProbeReport& report) {
  if (report.usable()) return rung_name(kRungs[report.ladder.chosen]);
  return report.guarded ? GuardedMmu::name() : "";
}

bool can_run_programs(const ProbeReport& report) {
  return report.usable() && kRungs[report.ladder.chosen] != Rung::kUserModeOnly;
}

Verdict judge(const ProbeReport& report) {
  if (!report.usable()) return report.guarded ? Verdict::kRestricted : Verdict::kUnusable;
  if (!can_run_programs(report)) return Verdict::kRestricted;
  for (const ProbeRow& row : report.rows) {
    if (is_lost(row)) return Verdict::kRestricted;
  }
  return Verdict::kUsable;
}

std::string verdict_text(const ProbeReport& report, Verdict verdict) {
  if (verdict == Verdict::kUnusable) return "whimbrel cannot work here";
  const std::string rung = fmt::format(" (rung: {})", chosen_rung(report));
  if (!report.usable()) {
    return "programs that open sessions work on guarded arenas, with restrictions; whimbrel run cannot be used" + rung;
  }
  if (!can_run_programs(report)) {
    return "programs that use whimbrel's interface work with restrictions; whimbrel run cannot be used" + rung;
  }
  return (verdict == Verdict::kUsable ? "everything works" : "whimbrel works; something is lost, see below") + rung;
}

const char* mark(const ProbeRow& row) {
  if (row.works) return "ok";
  if (row.weight == ProbeRow::Weight::kNeeded) return "NO";
  return row.weight == ProbeRow::Weight::kFact || is_rung(row) ? "-" : "no";
}

// Refusals with the errno's name, which is what people search for.
std::string detail_of(const ProbeRow& row) {
  std::string out = row.detail;
  if (!row.works && row.sys != 0) {
    const char* name = strerrorname_np(row.sys);
    if (name != nullptr) out.append(out.empty() ? "" : ", ").append(name);
  }
  return out;
}

void print_machine(const ProbeReport& report, Verdict verdict) {
  fmt::print("{}\n\n", verdict_text(report, verdict));
  for (const ProbeRow& row : report.rows) {
    fmt::print("  {:<3} {:<30} {}\n", mark(row), row.name, detail_of(row));
    if (row.consequence[0] != 0 && (!row.works || row.weight != ProbeRow::Weight::kFact)) {
      fmt::print("      {}\n", row.consequence);
    }
    const bool worth_fixing = !row.works && row.fix[0] != 0 && (!is_rung(row) || !can_run_programs(report));
    if (worth_fixing) fmt::print("      fix: {}\n", row.fix);
  }
}

void print_program(const ProgramReport& report, const std::string& name) {
  const std::string path = report.path.empty() ? name : report.path;
  if (report.verdict == Manageable::kYes) {
    fmt::print("\n{}: can be managed{}\n", path,
               report.interpreter.empty() ? "" : " (a script: what runs is " + report.interpreter + ")");
  } else {
    fmt::print("\n{}: cannot be managed: {}\n  next: {}\n", path, report.reason, report.advice);
  }
}

nlohmann::ordered_json machine_json(const ProbeReport& report, Verdict verdict) {
  static constexpr const char* kVerdicts[] = {"usable", "restricted", "unusable"};
  static constexpr const char* kWeights[] = {"needed", "helps", "fact"};
  nlohmann::ordered_json out;
  out["verdict"] = kVerdicts[static_cast<int>(verdict)];
  out["run"] = can_run_programs(report);
  out["rung"] = chosen_rung(report);
  for (const ProbeRow& row : report.rows) {
    out["rows"].push_back({{"name", row.name},
                           {"works", row.works},
                           {"weight", kWeights[static_cast<int>(row.weight)]},
                           {"errno", row.sys},
                           {"detail", row.detail},
                           {"consequence", row.consequence},
                           {"fix", row.fix}});
  }
  return out;
}

}  // namespace

int doctor_command(const DoctorOptions& options) {
  Reservation memory;
  if (!memory.open({.bytes = std::uint64_t{64} << 20})) {
    return complain(static_cast<int>(Verdict::kUnusable), "no address space left for the examination", "raise ulimit -v");
  }
  const ProbeReport report = probe(memory);
  const Verdict verdict = judge(report);
  int status = static_cast<int>(verdict);
  std::string tried;
  const std::string library = find_preload_library(&tried);
  ProgramReport program;
  if (!options.program.empty()) {
    program = inspect_program(options.program);
    if (program.verdict != Manageable::kYes) status = static_cast<int>(Verdict::kUnusable);
  }
  if (options.json) {
    nlohmann::ordered_json out = machine_json(report, verdict);
    out["library"] = library;
    if (!options.program.empty()) {
      out["program"] = {{"name", options.program},
                        {"path", program.path},
                        {"interpreter", program.interpreter},
                        {"manageable", program.verdict == Manageable::kYes},
                        {"reason", program.reason},
                        {"next", program.advice}};
    }
    fmt::print("{}\n", out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace));
    return status;
  }
  print_machine(report, verdict);
  if (library.empty()) fmt::print("\n  libwhimbrel-preload.so is not installed beside this program (tried {})\n", tried);
  if (!options.program.empty()) print_program(program, options.program);
  return status;
}

}  // namespace whimbrel::cli
