// Two computations over memory of a given size whose results can be checked without a second copy of the data.
#pragma once

#include <cstdint>
#include <vector>

#include "bench/result.h"

namespace bench {

// C[:, 0..kPanel) = A x B[:, 0..kPanel), float, blocked. A and B are square and take `bytes` together, so the product
// streams over A and reads B in a stride. Elements are small integers: every sum is exact, and each row of C is
// compared with the sum computed from the formula of the elements. Results: "matmul_fill", "matmul".
std::vector<Result> matrix_product(std::uint64_t bytes, std::uint64_t seed);

// R joins S on a unique key: both are scattered into partitions, then each pair is joined through a small hash table.
// R, S and their partitions take `bytes` together. Each matching pair is counted and its payloads are summed; both
// are known from the formula of the rows. Results: "join_fill", "join_partition", "join_probe".
std::vector<Result> hash_join(std::uint64_t bytes, std::uint64_t seed);

}  // namespace bench
