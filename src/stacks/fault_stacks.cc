#include "stacks/fault_stacks.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <string_view>

#include "stacks/symbols.h"

namespace whimbrel::stacks {
namespace {

constexpr std::uint64_t kMillisecond = 1'000'000;
constexpr std::uint64_t kPageShift = 12;
// The kernel takes the sample when the fault begins. How long it may be then until the engine takes it up, ...
constexpr std::uint64_t kLatest = 1000 * kMillisecond;
// ... and its record of it is here, which comes when it has been served. For so many samples at a time.
constexpr std::uint64_t kPatience = 1000 * kMillisecond;
constexpr std::size_t kMostPending = 4096;
constexpr std::uint64_t kForgetAfter = 2000 * kMillisecond;
// Of one processor, for unwinding; beyond it samples are counted without their stack.
constexpr std::uint64_t kUnwindingShare = 50;  // 1 in so much: 2 %
constexpr std::uint64_t kUnwindingAlways = 300 * kMillisecond;
constexpr std::size_t kMostCallers = 8;

std::uint64_t thread_time_ns() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(t.tv_nsec);
}

std::uint64_t steady_ns() { return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()); }

// What a program calls but is not: whoever asks where it touches memory does not mean memmove.
bool is_plumbing(const Place& place) {
  if (place.object.empty()) return false;
  static constexpr std::string_view kNames[] = {"libc.so", "libc-", "libm.so", "libstdc++.so", "libgcc_s.so", "ld-linux", "libpthread", "libwhimbrel"};
  return std::any_of(std::begin(kNames), std::end(kNames), [&](std::string_view n) { return place.object.starts_with(n); });
}

// A stripped file: addresses one by one would tell nobody anything.
bool is_nameless(const Place& place) { return place.function.empty() && place.source.empty() && !place.object.empty(); }

bool is_start(const Place& place) {
  return place.function == "_start" || place.function.starts_with("__libc_start") || place.function == "start_thread" ||
         place.function.starts_with("__clone") || place.function.starts_with("clone");
}

}  // namespace

void FaultStacks::served(std::uint32_t pid, std::uint64_t first_page, std::uint32_t pages, std::uint64_t time_ns, std::uint64_t latency_ns, bool fresh) {
  const std::uint64_t end = first_page + std::min<std::uint64_t>(pages, kMostFreshPages);
  for (std::uint64_t page = first_page; page < end; ++page) recent_[place_of(pid, page)] = {page, time_ns, latency_ns, pid, fresh};
}

const FaultStacks::Served* FaultStacks::find(const PerfRecord& sample) const {
  const Served& s = recent_[place_of(sample.pid, sample.address >> kPageShift)];
  if (s.pid != sample.pid || s.page != sample.address >> kPageShift) return nullptr;
  // A record from before is of an earlier fault at the same page.
  if (s.time_ns < sample.time_ns || s.time_ns - s.latency_ns > sample.time_ns + kLatest) return nullptr;
  return &s;
}

void FaultStacks::look(std::uint64_t now_ns, bool last) {
  if (begun_ns_ == 0) begun_ns_ = now_ns;
  records_.clear();
  perf_.take(&records_);
  for (PerfRecord& record : records_) follow(record);
  std::erase_if(pending_, [&](const Pending& pending) {
    const bool now_or_never = last || pending.sample.time_ns + kPatience <= now_ns;
    const Served* served = find(pending.sample);
    if (served != nullptr) count(pending, *served);
    else if (now_or_never) ++ordinary_;
    return served != nullptr || now_or_never;
  });
  if (pending_.size() > kMostPending) {
    const std::size_t too_many = pending_.size() - kMostPending;
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(too_many));
    ordinary_ += too_many;
  }
  std::erase_if(processes_, [now_ns](const auto& p) { return p.second.ended_ns != 0 && p.second.ended_ns + kForgetAfter < now_ns; });
}

void FaultStacks::follow(PerfRecord& record) {
  switch (record.what) {
    case PerfRecord::What::kSample: pending_.push_back({std::move(record), processes_[record.pid].image}); break;
    case PerfRecord::What::kMapping: {
      std::shared_ptr<ProcessImage>& image = processes_[record.pid].image;
      if (image.use_count() > 1) image = std::make_shared<ProcessImage>(*image);  // a forked process has it too
      image->add(record.address, record.length, record.file_offset, record.path);
      break;
    }
    case PerfRecord::What::kExec: processes_[record.pid] = Process(); break;
    case PerfRecord::What::kFork: {
      const auto parent = processes_.find(record.parent);
      Process child;
      if (parent != processes_.end()) child.image = parent->second.image;
      processes_[record.pid] = std::move(child);
      break;
    }
    case PerfRecord::What::kExit: processes_[record.pid].ended_ns = record.time_ns; break;
  }
}

bool FaultStacks::may_unwind() {
  return unwinding_ns_ < kUnwindingAlways || unwinding_ns_ - kUnwindingAlways < (steady_ns() - begun_ns_) / kUnwindingShare;
}

void FaultStacks::count(const Pending& pending, const Served& served) {
  std::vector<Frame> stack;
  if (may_unwind()) {
    const std::uint64_t start = thread_time_ns();
    stack = pending.image->unwind(pending.sample, files_);
    unwinding_ns_ += thread_time_ns() - start;
  } else {
    ++skipped_;
  }
  Counts& counts = stacks_[stack];
  ++(served.fresh ? counts.first_touches : counts.samples);
  counts.wait_ns += served.latency_ns;
}

StackTotals FaultStacks::totals() const {
  StackTotals out;
  out.period = period_;
  out.ordinary = ordinary_;
  out.skipped = skipped_;
  out.lost = perf_.lost();
  out.system_calls = perf_.sees_system_calls();
  Symbols symbols(files_);
  struct Line {
    PlaceTotals totals;
    std::uint64_t most = 0;  // of one stack
  };
  std::map<std::string, Line> lines;
  for (const auto& [stack, counts] : stacks_) {
    out.samples += counts.samples;
    out.first_touches += counts.first_touches;
    if (stack.empty()) continue;
    std::size_t own = 0;
    while (own < stack.size() && is_plumbing(symbols.of(stack[own]))) ++own;
    if (own == stack.size()) own = 0;
    const Place& innermost = symbols.of(stack[own]);
    const std::string place = is_nameless(innermost) ? innermost.object + " (no symbols)" : describe(innermost);
    Line& line = lines[place];
    line.totals.place = place;
    line.totals.samples += counts.samples;
    line.totals.first_touches += counts.first_touches;
    line.totals.wait_ns += counts.wait_ns;
    if (counts.samples + counts.first_touches < line.most) continue;
    line.most = counts.samples + counts.first_touches;
    line.totals.inside = own == 0 ? "" : describe(symbols.of(stack[0]));
    line.totals.callers.clear();
    for (std::size_t i = own + 1; i < stack.size() && line.totals.callers.size() < kMostCallers; ++i) {
      const Place& caller = symbols.of(stack[i]);
      if (is_start(caller)) break;
      line.totals.callers.push_back(describe(caller));
    }
  }
  for (auto& [place, line] : lines) out.places.push_back(std::move(line.totals));
  std::sort(out.places.begin(), out.places.end(), [](const PlaceTotals& a, const PlaceTotals& b) {
    return a.samples != b.samples ? a.samples > b.samples : a.first_touches > b.first_touches;
  });
  return out;
}

}  // namespace whimbrel::stacks
