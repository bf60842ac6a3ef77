// "Why slow": what a recording says about the time a program waited, in sentences, each with what to do.
#pragma once

#include <string>
#include <vector>

#include "replay/recording.h"
#include "replay/simulation.h"

namespace whimbrel::report {

struct Finding {
  std::string what;    // a sentence
  std::string advice;  // what to do; may be empty
};

[[nodiscard]] std::vector<Finding> diagnose(const replay::Recording& recording, const replay::Simulator& simulator);

}  // namespace whimbrel::report
