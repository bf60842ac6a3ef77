#include "bench/kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>

#include "bench/random.h"
#include "bench/region.h"

namespace bench {
namespace {

constexpr std::uint64_t kPanel = 64;   // columns of the product
constexpr std::uint64_t kDepth = 512;  // rows of B that are used together: a panel of 128 KiB stays in the cache
constexpr std::uint64_t kRows = 64;    // rows of A between two changes of the panel

// Small enough that no sum over a million products leaves the 24 bits in which a float is exact.
float element(std::uint64_t matrix, std::uint64_t row, std::uint64_t column) {
  return static_cast<float>(static_cast<int>(mix64(matrix ^ (row << 24) ^ column) % 5) - 2);
}

void multiply_block(const float* a, const float* b, float* c, std::uint64_t n, std::uint64_t row_begin,
                    std::uint64_t row_end, std::uint64_t depth_begin, std::uint64_t depth_end) {
  for (std::uint64_t row = row_begin; row < row_end; ++row) {
    std::array<float, kPanel> sums;
    std::copy_n(c + row * kPanel, kPanel, sums.begin());
    for (std::uint64_t k = depth_begin; k < depth_end; ++k) {
      const float factor = a[row * n + k];
      const float* from = b + k * n;
      for (std::uint64_t column = 0; column < kPanel; ++column) sums[column] += factor * from[column];
    }
    std::copy_n(sums.begin(), kPanel, c + row * kPanel);
  }
}

// Rows of the product whose sum differs from the one the formula gives: sum_j C[i][j] = sum_k A[i][k] * (sum_j
// B[k][j]).
std::uint64_t wrong_rows(const float* c, std::uint64_t n, std::uint64_t seed) {
  std::vector<std::int64_t> b_sums(n, 0);
  for (std::uint64_t k = 0; k < n; ++k) {
    for (std::uint64_t column = 0; column < kPanel; ++column) {
      b_sums[k] += static_cast<std::int64_t>(element(seed + 2, k, column));
    }
  }
  std::uint64_t wrong = 0;
  for (std::uint64_t row = 0; row < n; ++row) {
    std::int64_t expected = 0;
    for (std::uint64_t k = 0; k < n; ++k) expected += static_cast<std::int64_t>(element(seed + 1, row, k)) * b_sums[k];
    std::int64_t got = 0;
    for (std::uint64_t column = 0; column < kPanel; ++column) got += std::llround(c[row * kPanel + column]);
    wrong += expected == got ? 0 : 1;
  }
  return wrong;
}

struct Row {
  std::uint64_t key;
  std::uint64_t payload;
};

// Keys of R are a permutation of 0..rows-1; every second row of S finds a partner.
constexpr std::uint64_t kPartitions = 64;
std::uint64_t partition_of(std::uint64_t key) { return mix64(key) % kPartitions; }

// One side of the join: rows in the order they came and the same rows by partition.
struct Table {
  explicit Table(std::uint64_t row_count)
      : rows(row_count * sizeof(Row)),
        partitioned(row_count * sizeof(Row)),
        begin(kPartitions + 1, 0),
        count(row_count) {}

  void partition() {
    std::vector<std::uint64_t> next(kPartitions + 1, 0);
    const Row* from = rows.as<Row>();
    for (std::uint64_t i = 0; i < count; ++i) ++next[partition_of(from[i].key) + 1];
    for (std::uint64_t p = 0; p < kPartitions; ++p) next[p + 1] += next[p];
    begin = next;
    Row* to = partitioned.as<Row>();
    for (std::uint64_t i = 0; i < count; ++i) to[next[partition_of(from[i].key)]++] = from[i];
  }

  Region rows;
  Region partitioned;
  std::vector<std::uint64_t> begin;
  std::uint64_t count;
};

struct JoinResult {
  std::uint64_t matches = 0;
  std::uint64_t sum = 0;
};

void join_partition(const Table& r, const Table& s, std::uint64_t p, std::vector<Row>& slots, JoinResult& result) {
  constexpr std::uint64_t kEmpty = ~std::uint64_t{0};
  const std::uint64_t mask = slots.size() - 1;
  std::ranges::fill(slots, Row{kEmpty, 0});
  const Row* build = r.partitioned.as<Row>();
  for (std::uint64_t i = r.begin[p]; i < r.begin[p + 1]; ++i) {
    std::uint64_t slot = mix64(build[i].key ^ 0x5555) & mask;
    while (slots[slot].key != kEmpty) slot = (slot + 1) & mask;
    slots[slot] = build[i];
  }
  const Row* probe = s.partitioned.as<Row>();
  for (std::uint64_t i = s.begin[p]; i < s.begin[p + 1]; ++i) {
    for (std::uint64_t slot = mix64(probe[i].key ^ 0x5555) & mask; slots[slot].key != kEmpty;
         slot = (slot + 1) & mask) {
      if (slots[slot].key != probe[i].key) continue;
      ++result.matches;
      result.sum += slots[slot].payload + probe[i].payload;
    }
  }
}

}  // namespace

std::vector<Result> matrix_product(std::uint64_t bytes, std::uint64_t seed) {
  const auto n = std::max<std::uint64_t>(
      kPanel, static_cast<std::uint64_t>(std::sqrt(static_cast<double>(bytes) / 8.0)) / kPanel * kPanel);
  const Region a_memory(n * n * sizeof(float));
  const Region b_memory(n * n * sizeof(float));
  const Region c_memory(n * kPanel * sizeof(float));
  auto* a = a_memory.as<float>();
  auto* b = b_memory.as<float>();
  auto* c = c_memory.as<float>();

  std::vector<Result> results;
  Measurement filling("matmul_fill");
  for (std::uint64_t i = 0; i < n; ++i) {
    for (std::uint64_t j = 0; j < n; ++j) {
      a[i * n + j] = element(seed + 1, i, j);
      b[i * n + j] = element(seed + 2, i, j);
    }
  }
  results.push_back(filling.finish(2 * n * n, 2 * n * n * sizeof(float), 0, n));

  Measurement measurement("matmul");
  for (std::uint64_t row = 0; row < n; row += kRows) {
    for (std::uint64_t k = 0; k < n; k += kDepth) {
      multiply_block(a, b, c, n, row, std::min(row + kRows, n), k, std::min(k + kDepth, n));
    }
  }
  std::uint64_t checksum = 0;
  for (std::uint64_t i = 0; i < n * kPanel; ++i)
    checksum = checksum * 31 + static_cast<std::uint64_t>(std::llround(c[i]));
  Result result = measurement.finish(n * n, n * n * sizeof(float), 0, checksum);
  result.wrong = wrong_rows(c, n, seed);
  results.push_back(result);
  return results;
}

std::vector<Result> hash_join(std::uint64_t bytes, std::uint64_t seed) {
  const std::uint64_t count = std::max<std::uint64_t>(1024, bytes / (4 * sizeof(Row)));
  Table r(count);
  Table s(count);
  const Permutation shuffle(count, seed + 21);

  std::vector<Result> results;
  std::uint64_t expected_sum = 0;
  std::uint64_t expected_matches = 0;
  Measurement filling("join_fill");
  for (std::uint64_t i = 0; i < count; ++i) {
    const std::uint64_t key = shuffle(i);
    r.rows.as<Row>()[i] = {key, mix64(key) & 0xFFFF};
    const std::uint64_t foreign = mix64(seed + i) % (2 * count);
    s.rows.as<Row>()[i] = {foreign, i & 0xFFFF};
    if (foreign < count) {
      ++expected_matches;
      expected_sum += (mix64(foreign) & 0xFFFF) + (i & 0xFFFF);
    }
  }
  results.push_back(filling.finish(2 * count, 2 * count * sizeof(Row), 0, count));

  Measurement partitioning("join_partition");
  r.partition();
  s.partition();
  results.push_back(partitioning.finish(2 * count, 6 * count * sizeof(Row), 0, r.begin[1] * 31 + s.begin[1]));

  std::uint64_t largest = 1;
  for (std::uint64_t p = 0; p < kPartitions; ++p) largest = std::max(largest, r.begin[p + 1] - r.begin[p]);
  std::uint64_t slot_count = 1;
  while (slot_count < 2 * largest) slot_count *= 2;
  std::vector<Row> slots(slot_count);
  JoinResult joined;
  Measurement probing("join_probe");
  for (std::uint64_t p = 0; p < kPartitions; ++p) join_partition(r, s, p, slots, joined);
  Result result = probing.finish(2 * count, 2 * count * sizeof(Row), 0, joined.sum);
  result.wrong = joined.matches == expected_matches && joined.sum == expected_sum ? 0 : 1;
  results.push_back(result);
  return results;
}

}  // namespace bench
