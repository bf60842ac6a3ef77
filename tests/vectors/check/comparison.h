// Compares what the replayer printed with the record, line by line.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "deviations.h"
#include "tests/vectors/replay/vector_file.h"

namespace vectors {

struct Difference {
  std::string want;
  std::string got;
  std::string why;  // empty: they just differ
};

struct Verdict {
  std::vector<Difference> differences;  // empty: passed
  int lines = 0;                        // of the record
  int deviating_lines = 0;              // that differ as listed
};

// `output` is everything the replayer printed for this vector.
[[nodiscard]] Verdict compare(const Vector& vector, std::string_view output, const Deviations& deviations);

// Compares two outputs of the same script by what the program itself sees: CPU accesses, files, and copies made by the
// kernel. Used to show that devices do not show.
[[nodiscard]] Verdict compare_program_view(std::string_view want, std::string_view got);

}  // namespace vectors
