// run_vectors: replays files of vectors against a library that stands in for the mirror devices (or against the devices
// of a kernel) and compares with the record.
#include <fnmatch.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "comparison.h"
#include "deviations.h"
#include "host.h"
#include "open_list.h"
#include "replay_process.h"
#include "tests/vectors/replay/vector_file.h"

namespace {

using vectors::Deviations;
using vectors::ReplayResult;
using vectors::Vector;
using vectors::Verdict;

constexpr char kUsage[] =
    "usage: run_vectors [options] FILE...        replays every vector and compares with its record; a directory\n"
    "                                        stands for the plain scripts (*.ops) in it\n"
    "       run_vectors --check-syntax FILE...   only reads the files\n"
    "       run_vectors --print NAME FILE        the script and the recorded answers of one vector\n"
    "\n"
    "  --preload LIBRARY     library that the replayer is to preload\n"
    "  --dev PREFIX          device nodes are PREFIX0 .. PREFIX3\n"
    "  --deviations FILE     answers that may differ, with reasons\n"
    "  --open FILE           vectors that may still fail, with reasons: counted apart; one that passes\n"
    "                        fails the run, unless its reason begins with: now and then\n"
    "  --program-view        compare with a run without devices instead of the record, and only what the\n"
    "                        program itself sees; device writes are left out\n"
    "  --case PATTERN        only vectors whose name matches (shell pattern; may be repeated)\n"
    "  --replay PROGRAM      the replayer (default: 'replay' beside this program)\n"
    "  -j N                  replay so many at a time (default 1)\n"
    "  --timeout SECONDS     per vector (default 60)\n"
    "  -v                    show every difference, not only the first of each vector\n"
    "\n"
    "Exit status: 0 all agree, 1 some differ, 2 nothing could be run.\n";

struct Options {
  std::string preload, device_prefix, deviations, open, replayer, print;
  std::vector<std::string> patterns, files;
  bool check_syntax = false, program_view = false, verbose = false;
  int parallel = 1, time_limit = 60;
};

bool parse_options(int argc, char** argv, Options& options) {
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    const auto value = [&]() -> std::string { return i + 1 < argc ? argv[++i] : ""; };
    if (word == "--preload")
      options.preload = value();
    else if (word == "--dev")
      options.device_prefix = value();
    else if (word == "--deviations")
      options.deviations = value();
    else if (word == "--open")
      options.open = value();
    else if (word == "--replay")
      options.replayer = value();
    else if (word == "--print")
      options.print = value();
    else if (word == "--case")
      options.patterns.push_back(value());
    else if (word.starts_with("-j"))
      options.parallel = std::max(1, std::atoi(word == "-j" ? value().c_str() : word.c_str() + 2));
    else if (word == "--timeout")
      options.time_limit = std::max(1, std::atoi(value().c_str()));
    else if (word == "--check-syntax")
      options.check_syntax = true;
    else if (word == "--program-view")
      options.program_view = true;
    else if (word == "-v")
      options.verbose = true;
    else if (word.starts_with("-"))
      return false;
    else
      options.files.push_back(word);
  }
  return !options.files.empty();
}

struct VectorSet {
  std::string file;
  std::vector<Vector> vectors;
};

bool wanted(const Options& options, const std::string& name) {
  return options.patterns.empty() ||
         std::any_of(options.patterns.begin(), options.patterns.end(),
                     [&](const std::string& pattern) { return fnmatch(pattern.c_str(), name.c_str(), 0) == 0; });
}

// A directory stands for the scripts in it.
std::vector<std::string> expand(const std::vector<std::string>& paths) {
  std::vector<std::string> files;
  for (const std::string& path : paths) {
    if (!std::filesystem::is_directory(path)) {
      files.push_back(path);
      continue;
    }
    const auto first = static_cast<std::ptrdiff_t>(files.size());
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      if (entry.path().extension() == ".ops") files.push_back(entry.path());
    }
    std::sort(files.begin() + first, files.end());
  }
  return files;
}

// A plain script (anything that holds no "== NAME" line) becomes a vector without a record.
std::expected<VectorSet, std::string> load(const std::string& file) {
  const auto text = vectors::read_file(file);
  if (!text) return std::unexpected(text.error());
  if (text->starts_with("== ") || text->find("\n== ") != std::string::npos) {
    auto loaded = vectors::parse_vectors(*text, file);
    if (!loaded) return std::unexpected(loaded.error());
    return VectorSet{file, std::move(*loaded)};
  }
  const std::string name = std::filesystem::path(file).stem();
  auto loaded = vectors::parse_vectors("== " + name + "\n" + *text, file);
  if (!loaded) return std::unexpected(loaded.error());
  return VectorSet{file, std::move(*loaded)};
}

// Counts verdicts and prints what differs.
class Report {
 public:
  Report(bool verbose, const vectors::OpenList& open) : verbose_(verbose), open_list_(open) {}

  void add(const std::string& name, const Verdict& verdict, const ReplayResult& run) {
    lines_ += verdict.lines;
    deviating_ += verdict.deviating_lines;
    const std::string* open = open_list_.reason(name);
    if (verdict.differences.empty() && run.failure.empty()) {
      passed_++;
      if (open != nullptr && open->rfind("now and then", 0) != 0) {
        stale_++;
        std::printf("FAIL %s passes, but is listed as open (%s): remove it\n", name.c_str(), open->c_str());
      }
      if (verdict.deviating_lines > 0) passed_deviating_++;
      return;
    }
    if (open != nullptr) {
      open_++;
      std::printf("OPEN %s: %s\n", name.c_str(), open->c_str());
      if (!verbose_) return;
    } else {
      failed_++;
      std::printf("FAIL %s\n", name.c_str());
    }
    const std::size_t shown =
        verbose_ ? verdict.differences.size() : std::min<std::size_t>(1, verdict.differences.size());
    for (std::size_t i = 0; i < shown; i++) {
      const auto& difference = verdict.differences[i];
      if (!difference.want.empty())
        std::printf("  want: %s\n   got: %s\n", difference.want.c_str(), difference.got.c_str());
      if (!difference.why.empty()) std::printf("        %s\n", difference.why.c_str());
    }
    if (verdict.differences.size() > shown) std::printf("  and %zu more\n", verdict.differences.size() - shown);
    if (!run.failure.empty()) std::printf("  replay: %s\n", run.failure.c_str());
    if (!run.errors.empty()) std::printf("%s", run.errors.c_str());
  }

  int finish() const {
    std::printf("%d passed (%d of them with listed deviations), %d open, %d failed; %d lines, %d deviating\n", passed_,
                passed_deviating_, open_, failed_, lines_, deviating_);
    if (passed_ + open_ + failed_ == 0) return 2;
    return failed_ == 0 && stale_ == 0 ? 0 : 1;
  }

 private:
  bool verbose_;
  const vectors::OpenList& open_list_;
  int passed_ = 0, passed_deviating_ = 0, open_ = 0, failed_ = 0, lines_ = 0, deviating_ = 0, stale_ = 0;
};

std::vector<std::string> replay_arguments(const Options& options, const VectorSet& set, const Vector& vector) {
  std::vector<std::string> arguments;
  if (!options.device_prefix.empty()) arguments = {"--dev", options.device_prefix};
  if (vector.record.empty() && set.vectors.size() == 1) {
    arguments.push_back(set.file);
  } else {
    arguments.insert(arguments.end(), {"--case", vector.name, set.file});
  }
  return arguments;
}

// Only what snapshots say differs, as it does where the kernel has made a huge page of base pages by itself.
bool may_be_collapse(const Verdict& verdict, const ReplayResult& run) {
  return run.failure.empty() && !verdict.differences.empty() &&
         std::all_of(verdict.differences.begin(), verdict.differences.end(),
                     [](const auto& difference) { return difference.want.find(" snap ") != std::string::npos; });
}

// Replays vectors again that differ in snapshots only while the kernel was collapsing pages in the background: the
// record is of scripts that it did not meet, and it says so of the one that it did.
void replay_undisturbed(const Options& options, std::vector<vectors::ReplayJob> jobs, const Deviations& deviations,
                        const vectors::OpenList& open, const std::vector<const Vector*>& vectors, Report& report) {
  constexpr int kPasses = 3;
  std::vector<std::size_t> left(jobs.size());
  for (std::size_t i = 0; i < left.size(); i++) left[i] = i;
  for (int pass = 1; !left.empty(); pass++) {
    struct Differing {
      std::size_t index;
      Verdict verdict;
      ReplayResult run;
    };
    std::vector<Differing> differing;
    std::vector<vectors::ReplayJob> now;
    for (const std::size_t i : left) {
      now.push_back({jobs[i].arguments, jobs[i].preload, [&, i](const ReplayResult& run) {
                       Verdict verdict = compare(*vectors[i], run.output, deviations);
                       if (open.reason(vectors[i]->name) == nullptr && may_be_collapse(verdict, run)) {
                         differing.push_back({i, std::move(verdict), run});
                       } else {
                         report.add(vectors[i]->name, verdict, run);
                       }
                     }});
    }
    const std::uint64_t before = vectors::background_collapses();
    run_replays(options.replayer, std::move(now), options.parallel, options.time_limit);
    const bool disturbed = vectors::background_collapses() != before;
    left.clear();
    for (const Differing& one : differing) {
      if (disturbed && pass < kPasses) {
        std::printf("AGAIN %s: the kernel has been collapsing pages meanwhile\n", vectors[one.index]->name.c_str());
        left.push_back(one.index);
      } else {
        report.add(vectors[one.index]->name, one.verdict, one.run);
      }
    }
  }
}

int replay_all(const Options& options, const std::vector<VectorSet>& sets, const Deviations& deviations,
               const vectors::OpenList& open) {
  Report report(options.verbose, open);
  std::vector<const Vector*> recorded;
  std::vector<vectors::ReplayJob> jobs;
  std::vector<std::string> without_devices;  // output of the run before, with --program-view
  int left_out = 0;
  for (const VectorSet& set : sets) {
    for (const Vector& vector : set.vectors) {
      if (!wanted(options, vector.name)) continue;
      std::vector<std::string> arguments = replay_arguments(options, set, vector);
      if (!options.program_view) {
        jobs.push_back({arguments, options.preload, {}});
        recorded.push_back(&vector);
        continue;
      }
      // A mapping of a node is memory that only devices give.
      if (vector.script.find("mapdev") != std::string::npos) {
        left_out++;
        continue;
      }
      std::vector<std::string> plain = arguments;
      plain.insert(plain.begin(), "--skip-devices");
      arguments.insert(arguments.begin(), "--skip-device-writes");
      jobs.push_back({plain, "", [&](const ReplayResult& run) { without_devices.push_back(run.output); }});
      jobs.push_back({arguments, options.preload, [&](const ReplayResult& run) {
                        report.add(vector.name, vectors::compare_program_view(without_devices.back(), run.output), run);
                      }});
    }
  }
  if (options.program_view) {
    run_replays(options.replayer, std::move(jobs), options.parallel, options.time_limit);
  } else {
    replay_undisturbed(options, std::move(jobs), deviations, open, recorded, report);
  }
  if (left_out > 0) std::printf("%d left out: they map a node\n", left_out);
  return report.finish();
}

int print(const Options& options, const std::vector<VectorSet>& sets) {
  for (const VectorSet& set : sets) {
    for (const Vector& vector : set.vectors) {
      if (vector.name != options.print) continue;
      std::printf("%s\n", vector.script.c_str());
      for (const auto& line : vector.record) std::printf("%s%s\n", line.stable ? "" : "? ", line.text.c_str());
      return 0;
    }
  }
  std::fprintf(stderr, "run_vectors: no vector %s\n", options.print.c_str());
  return 2;
}

int count(const std::vector<VectorSet>& sets) {
  std::size_t vectors = 0, lines = 0;
  for (const VectorSet& set : sets) {
    vectors += set.vectors.size();
    for (const Vector& vector : set.vectors) lines += vector.record.size();
  }
  std::printf("%zu vectors, %zu recorded lines: syntax is good\n", vectors, lines);
  return vectors > 0 ? 0 : 2;
}

int fail(const std::string& message) {
  std::fprintf(stderr, "run_vectors: %s\n", message.c_str());
  return 2;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse_options(argc, argv, options)) {
    std::fprintf(stderr, "%s", kUsage);
    return 2;
  }
  std::vector<VectorSet> sets;
  std::vector<Vector> all;
  for (const std::string& file : expand(options.files)) {
    auto set = load(file);
    if (!set) return fail(set.error());
    all.insert(all.end(), set->vectors.begin(), set->vectors.end());
    sets.push_back(std::move(*set));
  }
  Deviations deviations;
  if (!options.deviations.empty()) {
    const auto text = vectors::read_file(options.deviations);
    if (!text) return fail(text.error());
    auto parsed = Deviations::parse(*text, options.deviations, vectors::host_conditions());
    if (!parsed) return fail(parsed.error());
    deviations = std::move(*parsed);
    if (auto checked = deviations.check(all, options.files.size() == 1); !checked) return fail("\n" + checked.error());
  }
  vectors::OpenList open;
  if (!options.open.empty()) {
    const auto text = vectors::read_file(options.open);
    if (!text) return fail(text.error());
    auto parsed = vectors::OpenList::parse(*text, options.open);
    if (!parsed) return fail(parsed.error());
    open = std::move(*parsed);
    std::set<std::string> names;
    for (const Vector& vector : all) names.insert(vector.name);
    if (const std::string name = open.unknown(names); !name.empty() && options.files.size() > 1) {
      return fail(options.open + ": there is no vector " + name);
    }
  }
  if (options.check_syntax) return count(sets);
  if (!options.print.empty()) return print(options, sets);
  if (options.replayer.empty()) {
    options.replayer = std::filesystem::read_symlink("/proc/self/exe").parent_path() / "replay";
  }
  return replay_all(options, sets, deviations, open);
}
