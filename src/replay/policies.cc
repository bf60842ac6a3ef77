#include "replay/policies.h"

#include <algorithm>
#include <array>
#include <random>

#include "mm/heap_source.h"
#include "pager/second_chance.h"

namespace whimbrel::replay {
namespace {

std::uint64_t clump_of(PageIndex page) { return page.raw() / kClumpPages; }

template <class Visit>
void for_each_clump(PageRange pages, Visit&& visit) {
  for (std::uint64_t clump = clump_of(pages.first); clump * kClumpPages < pages.end().raw(); ++clump) visit(clump);
}

// The resident pages of one clump; false: none.
bool look_up(ResidentView& view, std::uint64_t clump, PageRange* victim) {
  Clump found;
  if (!view.next(PageIndex(clump * kClumpPages), &found) || clump_of(found.range.first) != clump) return false;
  *victim = found.range;
  return true;
}

// The engine's, with memory of its own.
class Engines final : public EvictionPolicy {
 public:
  explicit Engines(std::size_t clumps) : policy_(source_, clumps) {}
  void arrived(PageRange pages, Arrival how) noexcept override { policy_.arrived(pages, how); }
  void left(PageRange pages, PageCount count, Departure how) noexcept override { policy_.left(pages, count, how); }
  void set_capacity(PageCount limit) noexcept override { policy_.set_capacity(limit); }
  [[nodiscard]] Choice choose(ResidentView& view, PageCount want, PageRange* victim) noexcept override {
    return policy_.choose(view, want, victim);
  }
  void reset() noexcept override { policy_.reset(); }

 private:
  HeapSource source_;
  SecondChance policy_;
};

// What has been in RAM longest leaves first.
class Fifo final : public EvictionPolicy {
 public:
  void arrived(PageRange pages, Arrival) noexcept override {
    for_each_clump(pages, [this](std::uint64_t clump) {
      if (since_.try_emplace(clump, next_).second) order_.push({next_, clump});
      ++next_;
    });
  }
  void left(PageRange pages, PageCount, Departure) noexcept override {
    for_each_clump(pages, [this](std::uint64_t clump) { since_.erase(clump); });
  }
  void set_capacity(PageCount) noexcept override {}
  [[nodiscard]] Choice choose(ResidentView& view, PageCount, PageRange* victim) noexcept override {
    while (!order_.empty()) {
      const auto [when, clump] = order_.front();
      const auto found = since_.find(clump);
      if (found != since_.end() && found->second == when && look_up(view, clump, victim)) return Choice::kVictim;
      order_.pop();
    }
    return Choice::kNothing;
  }
  void reset() noexcept override {
    since_.clear();
    order_ = {};
  }

 private:
  std::unordered_map<std::uint64_t, std::uint64_t> since_;
  std::queue<std::pair<std::uint64_t, std::uint64_t>> order_;
  std::uint64_t next_ = 0;
};

// Any of the resident ones; the same each time it is run.
class Random final : public EvictionPolicy {
 public:
  void arrived(PageRange pages, Arrival) noexcept override {
    for_each_clump(pages, [this](std::uint64_t clump) {
      if (place_.try_emplace(clump, clumps_.size()).second) clumps_.push_back(clump);
    });
  }
  void left(PageRange, PageCount, Departure) noexcept override {}  // found out when it is chosen
  void set_capacity(PageCount) noexcept override {}
  [[nodiscard]] Choice choose(ResidentView& view, PageCount, PageRange* victim) noexcept override {
    while (!clumps_.empty()) {
      const std::size_t at = random_() % clumps_.size();
      if (look_up(view, clumps_[at], victim)) return Choice::kVictim;
      place_.erase(clumps_[at]);
      clumps_[at] = clumps_.back();
      clumps_.pop_back();
      if (at < clumps_.size()) place_[clumps_[at]] = at;
    }
    return Choice::kNothing;
  }
  void reset() noexcept override {
    clumps_.clear();
    place_.clear();
  }

 private:
  std::vector<std::uint64_t> clumps_;
  std::unordered_map<std::uint64_t, std::size_t> place_;
  std::mt19937_64 random_{1};
};

// Knows what comes: what is needed latest leaves first. No policy can do better by much, and none can be built: a measure
// for the others.
class Clairvoyant final : public EvictionPolicy {
 public:
  Clairvoyant(const Future& future, const std::uint64_t& now) : future_(future), now_(now) {}
  void arrived(PageRange pages, Arrival) noexcept override {
    for_each_clump(pages, [this](std::uint64_t clump) { queue_.insert({future_.next(clump, now_), clump}); });
  }
  void left(PageRange, PageCount, Departure) noexcept override {}
  void set_capacity(PageCount) noexcept override {}
  [[nodiscard]] Choice choose(ResidentView& view, PageCount, PageRange* victim) noexcept override {
    // Touched while they were there, which no arrival tells of.
    while (!queue_.empty() && queue_.begin()->first < now_) {
      const std::uint64_t clump = queue_.begin()->second;
      queue_.erase(queue_.begin());
      queue_.insert({future_.next(clump, now_), clump});
    }
    while (!queue_.empty()) {
      const auto last = std::prev(queue_.end());
      if (look_up(view, last->second, victim)) return Choice::kVictim;
      queue_.erase(last);
    }
    return Choice::kNothing;
  }
  void reset() noexcept override { queue_.clear(); }

 private:
  const Future& future_;
  const std::uint64_t& now_;
  std::set<std::pair<std::uint64_t, std::uint64_t>> queue_;
};

template <class Make>
class Factory final : public PolicyFactory {
 public:
  explicit Factory(Make make) : make_(make) {}
  [[nodiscard]] std::unique_ptr<EvictionPolicy> make(std::size_t clumps, const Future& future, const std::uint64_t& now) const override {
    return make_(clumps, future, now);
  }

 private:
  Make make_;
};

}  // namespace

std::uint64_t Future::next(std::uint64_t clump, std::uint64_t now) const {
  const auto found = touches_.find(clump);
  if (found == touches_.end()) return kNever;
  const auto at = std::lower_bound(found->second.begin(), found->second.end(), now);
  return at == found->second.end() ? kNever : *at;
}

std::span<const PolicyKind> policy_kinds() {
  using Made = std::unique_ptr<EvictionPolicy>;
  static const Factory engines([](std::size_t clumps, const Future&, const std::uint64_t&) -> Made { return std::make_unique<Engines>(clumps); });
  static const Factory fifo([](std::size_t, const Future&, const std::uint64_t&) -> Made { return std::make_unique<Fifo>(); });
  static const Factory any([](std::size_t, const Future&, const std::uint64_t&) -> Made { return std::make_unique<Random>(); });
  static const Factory clairvoyant([](std::size_t, const Future& future, const std::uint64_t& now) -> Made {
    return std::make_unique<Clairvoyant>(future, now);
  });
  static const std::array<PolicyKind, 4> kinds{{{"second-chance", "the engine's: old clumps leave, those that came back soon earn turns", &engines},
                                                {"fifo", "what has been in RAM longest leaves", &fifo},
                                                {"random", "any", &any},
                                                {"clairvoyant", "what is needed latest leaves: a bound, not to be had", &clairvoyant}}};
  return kinds;
}

const PolicyKind* find_policy(std::string_view name) {
  for (const PolicyKind& kind : policy_kinds()) {
    if (name == kind.name) return &kind;
  }
  return nullptr;
}

}  // namespace whimbrel::replay
