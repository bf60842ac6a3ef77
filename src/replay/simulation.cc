#include "replay/simulation.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <unordered_map>

#include "pager/budget.h"
#include "pager/streams.h"
#include "replay/page_sets.h"

namespace whimbrel::replay {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kFetchWindow = 64;
constexpr std::uint64_t kBatch = 256;

PageRange range_of(const Event& event) { return {PageIndex(event.first_page), PageCount(event.pages)}; }

struct Totals {
  std::uint64_t faults = 0, pages_home = 0, pages_out = 0;
};

// One process's memory under a budget.
class Memory final : private ResidentView {
 public:
  Memory(std::unique_ptr<EvictionPolicy> policy, std::uint64_t ram_pages, Totals& totals)
      : policy_(std::move(policy)), ram_pages_(ram_pages), limit_(ram_pages), totals_(totals) {
    policy_->set_capacity(PageCount(limit_));
  }

  // A child of a fork has what its parent has; how warm it is, its policy has to find out.
  void inherit(const Memory& parent) {
    pages_ = parent.pages_;
    Clump clump;
    for (PageIndex at(0); pages_.next_resident(at, &clump); at = clump.range.end()) policy_->arrived(clump.range, Arrival::kFresh);
    set_unseen(parent.ram_pages_ - std::min(parent.ram_pages_, parent.limit_));
  }

  void set_unseen(std::uint64_t pages) {
    const std::uint64_t limit = std::max(ram_pages_ - std::min(ram_pages_, pages), kLeastResidentPages);
    if (limit == limit_) return;
    limit_ = limit;
    policy_->set_capacity(PageCount(limit_));
    keep_reserve();
  }

  void appear(PageRange range) {
    make_room(range.count.raw());
    pages_.set(range, PageSets::kResident);
    policy_->arrived(range, Arrival::kFresh);
    keep_reserve();
  }

  // What the recording shows leaving was there, wherever it is here.
  void has_left(PageRange range, bool by_request) {
    for (PageIndex at = range.first; at < range.end(); ++at) {
      if (pages_.at(at) == PageSets::kUnknown) appear({at, PageCount(1)});
    }
    if (!by_request) return;
    const std::uint64_t gone = pages_.evict(range);
    totals_.pages_out += gone;
    policy_->left(range, PageCount(gone), Departure::kEvicted);
  }

  void touch(PageRange range) {
    for (PageIndex at = range.first; at < range.end(); ++at) touch(at);
  }

  void fetch(PageRange range) {
    const std::uint64_t away = pages_.away_in(range);
    if (away == 0) return;
    make_room(away);
    totals_.pages_home += pages_.bring(range);
    policy_->arrived(range, Arrival::kAhead);
    keep_reserve();
  }

  void drop(PageRange range) {
    pages_.drop(range);
    policy_->left(range, range.count, Departure::kDropped);
  }

  void move(PageRange from, PageIndex to) {
    pages_.move(from, to);
    policy_->left(from, from.count, Departure::kDropped);
    policy_->arrived({to, from.count}, Arrival::kFresh);
  }

 private:
  bool next(PageIndex from, Clump* out) noexcept override { return pages_.next_resident(from, out); }

  void touch(PageIndex page) {
    const PageSets::State state = pages_.at(page);
    if (state == PageSets::kResident) return;
    ++totals_.faults;
    const Streams::Window window = streams_.touch(page, PageCount(std::min(kFetchWindow, limit_ / 16)));
    if (state == PageSets::kUnknown) pages_.set({page, PageCount(1)}, PageSets::kAway);
    make_room(std::max<std::uint64_t>(pages_.away_in(window.range), 1));
    totals_.pages_home += pages_.bring({page, PageCount(1)}) + pages_.bring(window.range);
    streams_.brought(window, window.range);
    (void)streams_.take_verdict();
    policy_->arrived({page, PageCount(1)}, Arrival::kTouched);
    if (window.range.count.raw() > 1) policy_->arrived(window.range, Arrival::kAhead);
    keep_reserve();
  }

  void make_room(std::uint64_t pages) {
    if (pages_.resident() + pages > limit_) evict(std::max(pages_.resident() + pages - limit_, kClumpPages));
  }
  // What the engine's background thread does.
  void keep_reserve() {
    const std::uint64_t reserve = reserve_under(limit_);
    if (pages_.resident() + reserve / 2 > limit_) evict(pages_.resident() - (limit_ - std::min(reserve, limit_)));
  }
  void evict(std::uint64_t want) {
    for (int looks = 0; want != 0 && looks < 4096;) {
      PageRange victim;
      const EvictionPolicy::Choice choice = policy_->choose(*this, PageCount(std::min(want, kBatch)), &victim);
      if (choice == EvictionPolicy::Choice::kNothing) return;
      if (choice != EvictionPolicy::Choice::kVictim) {
        ++looks;
        continue;
      }
      const std::uint64_t gone = pages_.evict(victim);
      totals_.pages_out += gone;
      policy_->left(victim, PageCount(gone), Departure::kEvicted);
      want -= std::min(want, gone);
      if (gone == 0) ++looks;
    }
  }

  PageSets pages_;
  std::unique_ptr<EvictionPolicy> policy_;
  Streams streams_{Streams::Ladder{{1, 8, 16, 64, 64}}};
  const std::uint64_t ram_pages_;
  std::uint64_t limit_;
  Totals& totals_;
};

void replay_move(Memory& memory, const Event& event) {
  if (event.to == Place::kDevice) {
    memory.has_left(range_of(event), event.cause == MoveCause::kUser);
  } else if (event.from == Place::kNone) {
    memory.appear(range_of(event));
  } else if (event.cause == MoveCause::kFault || event.cause == MoveCause::kPrefetch) {
    memory.touch(range_of(event));
  } else {
    memory.fetch(range_of(event));
  }
}

}  // namespace

// By least squares over the faults: what one costs, and what each page costs that comes with it.
CostModel cost_of(const Recording& recording) {
  CostModel out;
  double n = 0, sum_x = 0, sum_y = 0, sum_xx = 0, sum_xy = 0, zero = 0, zero_ns = 0;
  // The records of one fault have the same time and process.
  const Event* fault = nullptr;
  double pages = 0;
  const auto finish = [&] {
    if (fault == nullptr) return;
    const auto y = static_cast<double>(fault->detail);
    n += 1;
    sum_x += pages;
    sum_y += y;
    sum_xx += pages * pages;
    sum_xy += pages * y;
    fault = nullptr;
  };
  for (const Event& event : recording.events) {
    if (event.what != What::kMove || event.to != Place::kRam) continue;
    if (event.from == Place::kNone) {
      zero += 1;
      zero_ns += static_cast<double>(event.detail);
      continue;
    }
    if (event.cause != MoveCause::kFault && event.cause != MoveCause::kPrefetch) continue;
    if (fault != nullptr && (event.time_ns != fault->time_ns || event.pid != fault->pid)) finish();
    if (fault == nullptr) {
      fault = &event;
      pages = 0;
    }
    if (event.cause == MoveCause::kPrefetch) pages += event.pages;
  }
  finish();
  out.faults = static_cast<std::uint64_t>(n);
  out.zero_fault_ns = zero == 0 ? 0 : zero_ns / zero;
  if (n == 0) return out;
  const double spread = n * sum_xx - sum_x * sum_x;
  if (spread > 0) out.page_ns = std::max(0.0, (n * sum_xy - sum_x * sum_y) / spread);
  out.fault_ns = (sum_y - out.page_ns * sum_x) / n;
  if (out.fault_ns < 0) {  // the slope came from few long windows
    out.page_ns = 0;
    out.fault_ns = sum_y / n;
  }
  return out;
}

Simulator::Simulator(const Recording& recording) : recording_(recording), cost_(cost_of(recording)) {
  struct Seen {
    PageSets pages;
    std::uint64_t unseen = 0;
  };
  std::unordered_map<std::uint32_t, Seen> seen;
  std::uint64_t largest_limit = 0;
  for (std::uint64_t i = 0; i < recording.events.size(); ++i) {
    const Event& event = recording.events[i];
    Seen& state = seen[event.pid];
    switch (event.what) {
      case What::kMove:
        state.pages.set(range_of(event), event.to == Place::kRam ? PageSets::kResident : PageSets::kAway);
        if (event.to == Place::kRam && event.from == Place::kDevice) {
          const PageRange range = range_of(event);
          for (std::uint64_t clump = range.first.raw() / kClumpPages; clump * kClumpPages < range.end().raw(); ++clump) future_.add(clump, i);
        }
        break;
      case What::kDrop: state.pages.drop(range_of(event)); break;
      case What::kRemap: state.pages.move(range_of(event), PageIndex(event.detail)); break;
      case What::kProcess: {
        const auto parent = seen.find(recording.processes[event.detail].parent);
        state = parent != seen.end() ? parent->second : Seen();
        break;
      }
      case What::kSample:
        state.unseen = recording.samples[event.detail].unseen_pages;
        largest_limit = std::max(largest_limit, recording.samples[event.detail].limit_bytes);
        break;
      default: break;
    }
    footprint_pages_ = std::max(footprint_pages_, state.pages.resident() + state.pages.away() + state.unseen);
  }
  recorded_bytes_ = recording.ram_limit_bytes != 0 ? recording.ram_limit_bytes : largest_limit;
}

Outcome Simulator::run(std::uint64_t ram_bytes, const PolicyKind& policy) const {
  Totals totals;
  std::uint64_t now = 0, zero_faults = 0;
  std::unordered_map<std::uint32_t, std::unique_ptr<Memory>> memories;
  const std::size_t clumps = std::clamp<std::size_t>(ram_bytes / kPage / 4, 4096, 131072);
  const auto fresh = [&] { return std::make_unique<Memory>(policy.factory->make(clumps, future_, now), ram_bytes / kPage, totals); };
  for (; now < recording_.events.size(); ++now) {
    const Event& event = recording_.events[now];
    if (event.what == What::kLost || event.what == What::kMappings) continue;
    std::unique_ptr<Memory>& memory = memories[event.pid];
    if (memory == nullptr || event.what == What::kProcess) {
      std::unique_ptr<Memory> made = fresh();
      if (event.what == What::kProcess) {
        const auto parent = memories.find(recording_.processes[event.detail].parent);
        if (parent != memories.end() && parent->second != nullptr) made->inherit(*parent->second);
      }
      memory = std::move(made);
    }
    switch (event.what) {
      case What::kMove:
        replay_move(*memory, event);
        if (event.from == Place::kNone) ++zero_faults;
        break;
      case What::kDrop: memory->drop(range_of(event)); break;
      case What::kRemap: memory->move(range_of(event), PageIndex(event.detail)); break;
      case What::kSample: memory->set_unseen(recording_.samples[event.detail].unseen_pages); break;
      case What::kExit: memories.erase(event.pid); break;
      default: break;
    }
  }
  Outcome out;
  out.ram_bytes = ram_bytes;
  out.policy = policy.name;
  out.faults = totals.faults;
  out.pages_home = totals.pages_home;
  out.pages_out = totals.pages_out;
  const double ahead = static_cast<double>(totals.pages_home - std::min(totals.pages_home, totals.faults));
  out.wait_seconds = (static_cast<double>(totals.faults) * cost_.fault_ns + ahead * cost_.page_ns + static_cast<double>(zero_faults) * cost_.zero_fault_ns) / 1e9;
  out.seconds = std::max(recording_.seconds - static_cast<double>(recording_.wait_ns) / 1e9, 0.0) + out.wait_seconds;
  out.wait_share = out.seconds > 0 ? out.wait_seconds / out.seconds : 0;
  out.lower_bound = ram_bytes < recorded_bytes_;
  return out;
}

bool Simulator::smallest_with(double wait_share, Outcome* out) const {
  const PolicyKind& policy = policy_kinds().front();
  const std::uint64_t step = std::max<std::uint64_t>(footprint_bytes() / 64 / kPage * kPage, kPage);
  // Room for all of it, and the reserve.
  const std::uint64_t all = footprint_bytes() + reserve_under(footprint_pages_) * kPage + step;
  if (all <= recorded_bytes_) return false;
  std::uint64_t low = 0, high = (all - recorded_bytes_ + step - 1) / step;  // in steps above the recorded budget
  Outcome best = run(recorded_bytes_ + high * step, policy);
  if (best.wait_share > wait_share) return false;
  while (low + 1 < high) {
    const std::uint64_t middle = (low + high) / 2;
    const Outcome now = run(recorded_bytes_ + middle * step, policy);
    if (now.wait_share <= wait_share) {
      high = middle;
      best = now;
    } else {
      low = middle;
    }
  }
  *out = best;
  return true;
}

}  // namespace whimbrel::replay
