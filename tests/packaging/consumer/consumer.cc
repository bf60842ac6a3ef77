#include <cstdio>
#include <numeric>
#include <whimbrel/device_memory.hpp>
#include <whimbrel/whimbrel.hpp>

int main() {
  whimbrel::session session{{.ram = 4 << 20}};
  whimbrel::array<long> a(session, 1 << 20);
  std::iota(a.begin(), a.end(), 0L);
  const long sum = std::accumulate(a.begin(), a.end(), 0L);
  std::printf("consumer: sum %ld, %lu pages left\n", sum, static_cast<unsigned long>(session.stats().pages_out));
  return sum == ((1L << 20) - 1) * (1L << 19) ? 0 : 1;
}
