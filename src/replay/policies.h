// Eviction policies for simulations, behind the same port as the engine's own (pager/eviction_policy.h).
#pragma once

#include <cstdint>
#include <memory>
#include <queue>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pager/eviction_policy.h"

namespace whimbrel::replay {

// When each clump is touched, as a recording tells it: indices of events, ascending. For the policy that knows the future.
class Future {
 public:
  static constexpr std::uint64_t kNever = ~std::uint64_t{0};
  void add(std::uint64_t clump, std::uint64_t when) {
    std::vector<std::uint64_t>& list = touches_[clump];
    if (list.empty() || list.back() != when) list.push_back(when);
  }
  // The first touch at or after `now`.
  [[nodiscard]] std::uint64_t next(std::uint64_t clump, std::uint64_t now) const;

 private:
  std::unordered_map<std::uint64_t, std::vector<std::uint64_t>> touches_;
};

// What each replayed process gets one of.
class PolicyFactory {
 public:
  virtual ~PolicyFactory() = default;
  // `now`: index of the event that is being replayed; outlives the policy. `clumps`: about how many there are.
  [[nodiscard]] virtual std::unique_ptr<EvictionPolicy> make(std::size_t clumps, const Future& future, const std::uint64_t& now) const = 0;
};

struct PolicyKind {
  const char* name;
  const char* summary;
  const PolicyFactory* factory;
};
// All there are; the engine's own first.
[[nodiscard]] std::span<const PolicyKind> policy_kinds();
[[nodiscard]] const PolicyKind* find_policy(std::string_view name);

}  // namespace whimbrel::replay
