// Prints how well the workload's contents compress: one JSON line per mix and unit size.
//
// Usage: bench_mix_ratio [MIB]      (default 16 MiB of pages a mix)
#include "bench/mix_ratio.h"

#include <lz4.h>
#include <zstd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

int main(int argc, char** argv) {
  const std::size_t mib = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 16;
  if (mib == 0 || mib > 1024) {
    std::fprintf(stderr, "bench_mix_ratio: the size must be 1 to 1024 MiB\n  try: bench_mix_ratio 16\n");
    return 2;
  }
  for (const bench::Mix mix : bench::kAllMixes) {
    const bench::MixSample sample(mix, (mib << 20) / bench::kPageBytes);
    std::printf("{\"mix\": \"%s\", \"fill_ns_per_page\": %.0f", bench::mix_name(mix), sample.fill_ns_per_page());
    for (const std::size_t unit : {4u << 10, 16u << 10, 64u << 10, 2048u << 10}) {
      std::printf(", \"%zuk\": {\"lz4\": %.2f, \"zstd1\": %.2f}", unit >> 10, sample.lz4_ratio(unit),
                  sample.zstd_ratio(unit, 1));
    }
    std::printf("}\n");
  }
  return 0;
}
