// Random worlds: a list of operations per seed, spread over program threads, engine threads and one that plays the rest
// of the machine (pins, forks, swap, KSM, signals).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "sim/worlds/world.h"

namespace whimbrel::sim {

struct Operation {
  enum class Kind : std::uint8_t {
    // program
    kRead,
    kWrite,
    kMap,
    kUnmap,
    kDiscard,
    kFree,
    kRemap,
    kRemapKeep,
    kProtectRead,
    kProtectNone,
    kProtectWrite,
    kLock,
    kUnlock,
    kGrow,
    kHugeAdvice,
    // engine
    kEvict,
    kEvictHuge,
    kPopulate,
    kFetch,
    kFetchHuge,
    kFramesHome,
    // the machine
    kPin,
    kFork,
    kMerge,
    kSwap,
    kReclaim,
    kCollapse,
    kSignal,
    kDeviceGone,
  };
  std::uint32_t thread = 0;
  Kind kind = Kind::kRead;
  std::uint64_t page = 0;    // index into the world's arena
  std::uint64_t count = 1;   // pages
  std::uint64_t to = 0;      // remap: another page of the arena
  std::uint64_t offset = 0;  // of the word in its page
};

[[nodiscard]] std::string describe(const Operation& operation);
[[nodiscard]] std::vector<Operation> random_operations(std::uint64_t seed);
// The same with bytes for dice: as many operations as they last for, but not more than random worlds have.
[[nodiscard]] std::vector<Operation> operations_from(std::span<const std::uint8_t> bytes);
[[nodiscard]] World::Options random_options(std::uint64_t seed, std::uint32_t failures, bool break_sharing);
// Maps the arena and starts the threads. keep: only these operations (null: all).
void start_random_world(World& world, std::uint64_t seed, const std::vector<Operation>& operations,
                        const std::vector<std::size_t>* keep);

}  // namespace whimbrel::sim
