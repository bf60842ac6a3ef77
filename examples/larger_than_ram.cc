// A grid four times larger than the RAM it may take, in C++: typed arrays, a prefetch under way, a pin, and where pages are.
#include <cstdio>
#include <numeric>
#include <whimbrel/whimbrel.hpp>

int main() try {
  whimbrel::session session{{.ram = 16 << 20, .device = "lz4"}};
  constexpr std::size_t kRows = 64, kColumns = 1 << 17;  // 64 rows of 1 MiB
  whimbrel::array<double> grid(session, kRows * kColumns);
  const auto row = [&](std::size_t r) { return grid.subspan(r * kColumns, kColumns); };
  for (std::size_t r = 0; r < kRows; ++r) std::iota(row(r).begin(), row(r).end(), static_cast<double>(r));

  const whimbrel::pin_guard first_row = session.pin(row(0));  // stays in RAM, whatever happens
  double sum = 0;
  for (std::size_t r = 0; r < kRows; ++r) {
    whimbrel::request next;
    if (r + 1 < kRows) next = session.prefetch_async(row(r + 1));
    for (std::size_t c = 0; c < kColumns; ++c) sum += row(r)[c] - row(0)[c];
  }
  std::size_t away = 0;
  for (const whimbrel::page& page : session.residency(grid.span())) away += page.where == WHIMBREL_AWAY ? 1 : 0;
  const whimbrel::outcome pinned = session.migrate(row(0));
  std::printf("sum %.0f; %zu of 16384 pages are away; the pinned row refused to go: %lu pages\n", sum, away,
              static_cast<unsigned long>(pinned.refused));
  return sum == kColumns * (kRows - 1) * kRows / 2.0 && away > 10'000 && pinned.refused == 256 ? 0 : 1;
} catch (const whimbrel::error& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
