// Scenarios: small worlds to be explored exhaustively: what the engine does × what the program does meanwhile × where
// the pages are at the start × small pages or one 2 MiB unit.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "sim/worlds/world.h"

namespace whimbrel::sim {

struct Scenario {
  std::string name;                   // e.g. "evict/munmap/resident/small"
  std::function<void(World&)> build;  // prepares the world and starts its threads
};

[[nodiscard]] std::vector<Scenario> all_scenarios();

}  // namespace whimbrel::sim
