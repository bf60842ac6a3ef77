// What the host under the replayer does differently from the recorded one, for reasons of its own.
#pragma once

#include <cstdint>
#include <set>
#include <string>

namespace vectors {

// Names of conditions that hold here:
//   no-zero-page    reading an empty page maps a real page, not the shared zero page
//   no-huge-pages   transparent huge pages are off, for programs that ask for them too
[[nodiscard]] std::set<std::string> host_conditions();

// Huge pages that the kernel has made of base pages by itself since it started, in any process; 0 where it does not tell.
[[nodiscard]] std::uint64_t background_collapses();

// Every condition that a list of deviations may name.
[[nodiscard]] const std::set<std::string>& known_conditions();

}  // namespace vectors
