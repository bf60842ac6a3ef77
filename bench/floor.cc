// The floor under every pager on this machine: what the primitives cost when nothing else is done.
//
// Usage: bench_floor [--size MIB] [--rounds N]     (default 64 MiB, 5 rounds; one JSON line per primitive)
// Every figure is the median of the rounds, after one round that is thrown away. A line with "skipped" says why a
// primitive could not be measured.
#include <lz4.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <exception>
#include <string>
#include <string_view>
#include <vector>

#include "bench/content.h"
#include "bench/fault_loop.h"
#include "bench/random.h"
#include "bench/region.h"
#include "bench/result.h"

namespace {

using bench::FaultLoop;
using bench::kPageBytes;
using bench::Placement;
using bench::Region;

struct Plan {
  std::uint64_t pages = (64u << 20) / kPageBytes;
  unsigned rounds = 5;
};

// Runs `body`, which returns nanoseconds per unit, and prints median and range.
template <class Body>
void measure(const Plan& plan, const std::string& name, const char* unit, Body body) {
  std::vector<double> times;
  body();
  for (unsigned round = 0; round < plan.rounds; ++round) times.push_back(body());
  std::ranges::sort(times);
  std::printf("{\"primitive\": \"%s\", \"unit\": \"%s\", \"ns\": %.1f, \"low\": %.1f, \"high\": %.1f}\n", name.c_str(),
              unit, times[times.size() / 2], times.front(), times.back());
  std::fflush(stdout);
}

void skip(const std::string& name, const std::string& reason) {
  std::string line = reason;
  std::ranges::replace(line, '\n', ' ');
  std::ranges::replace(line, '"', '\'');
  std::printf("{\"primitive\": \"%s\", \"skipped\": \"%s\"}\n", name.c_str(), line.c_str());
  std::fflush(stdout);
}

template <class Body>
double nanoseconds_each(std::uint64_t count, Body body) {
  const std::int64_t start = bench::monotonic_ns();
  body();
  return static_cast<double>(bench::monotonic_ns() - start) / static_cast<double>(count);
}

void touch_all(volatile std::byte* memory, std::uint64_t pages) {
  for (std::uint64_t page = 0; page < pages; ++page) memory[page * kPageBytes] = std::byte{1};
}

void measure_kernel(const Plan& plan) {
  measure(plan, "system call", "call", [] {
    return nanoseconds_each(100000, [] {
      for (int i = 0; i < 100000; ++i) syscall(SYS_getppid);
    });
  });
  measure(plan, "anonymous fault, fresh memory", "page", [&] {
    const Region region(plan.pages * kPageBytes);
    return nanoseconds_each(plan.pages, [&] { touch_all(region.as<volatile std::byte>(), plan.pages); });
  });
  const Region again(plan.pages * kPageBytes);
  measure(plan, "anonymous fault, page freed before", "page", [&] {
    madvise(again.as<void>(), again.bytes(), MADV_DONTNEED);
    return nanoseconds_each(plan.pages, [&] { touch_all(again.as<volatile std::byte>(), plan.pages); });
  });
  measure(plan, "anonymous fault, 2 MiB pages", "4 KiB page", [&] {
    const Region region(plan.pages * kPageBytes, true);
    return nanoseconds_each(plan.pages, [&] { touch_all(region.as<volatile std::byte>(), plan.pages); });
  });
}

void measure_copying(const Plan& plan) {
  const Region from(plan.pages * kPageBytes);
  const Region to(plan.pages * kPageBytes);
  std::memset(from.as<void>(), 1, from.bytes());
  std::memset(to.as<void>(), 2, to.bytes());
  measure(plan, "memcpy, large", "4 KiB page", [&] {
    return nanoseconds_each(plan.pages, [&] { std::memcpy(to.as<void>(), from.as<void>(), from.bytes()); });
  });
  measure(plan, "memcpy, one page in the cache", "4 KiB page", [&] {
    return nanoseconds_each(plan.pages, [&] {
      for (std::uint64_t page = 0; page < plan.pages; ++page) {
        std::memcpy(to.as<std::byte>() + (page % 2) * kPageBytes, from.as<std::byte>(), kPageBytes);
      }
    });
  });
}

// One word of every page, in order or scattered: the faults are what costs.
double touch_missing(FaultLoop& loop, std::uint64_t pages, bool scattered) {
  const bench::Permutation order(pages, 7);
  loop.drop();
  volatile std::byte* memory = loop.memory();
  return nanoseconds_each(pages, [&] {
    for (std::uint64_t i = 0; i < pages; ++i) memory[(scattered ? order(i) : i) * kPageBytes];
  });
}

void measure_loop(const Plan& plan, const std::string& name, Placement placement, std::uint64_t window, bool scattered,
                  bench::PageSource source) {
  if (placement == Placement::kOtherCpu && sysconf(_SC_NPROCESSORS_ONLN) < 2) return skip(name, "only one CPU");
  try {
    FaultLoop loop(plan.pages, window, placement, std::move(source));
    measure(plan, name, "page touched", [&] { return touch_missing(loop, plan.pages, scattered); });
  } catch (const std::exception& error) {
    skip(name, error.what());
  }
}

void measure_faults(const Plan& plan) {
  const auto nothing = [](std::uint64_t, std::uint64_t, std::byte*) {};
  for (const Placement placement : {Placement::kSameCpu, Placement::kOtherCpu, Placement::kFree}) {
    measure_loop(plan, std::string("userfaultfd copy, 1 page, handler on ") + bench::placement_name(placement),
                 placement, 1, false, nothing);
  }
  measure_loop(plan, "userfaultfd copy, 1 page, scattered, handler on same cpu", Placement::kSameCpu, 1, true, nothing);
  for (const std::uint64_t window : {8, 64, 512}) {
    measure_loop(plan, "userfaultfd copy, window of " + std::to_string(window) + ", handler on same cpu",
                 Placement::kSameCpu, window, false, nothing);
  }
}

// All pages of the workload's default mix, compressed in units and kept one behind the other.
class Blobs {
 public:
  enum class Codec : std::uint8_t { kLz4, kZstd };

  Blobs(Codec codec, std::uint64_t pages, std::uint64_t unit_pages) : codec_(codec), unit_pages_(unit_pages) {
    const bench::Content content(bench::Mix::kMixed, 1);
    const std::size_t unit = unit_pages * kPageBytes;
    std::vector<std::uint64_t> page_words(unit / sizeof(std::uint64_t));
    std::vector<char> out(
        std::max(ZSTD_compressBound(unit), static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(unit)))));
    for (std::uint64_t first = 0; first < pages; first += unit_pages) {
      for (std::uint64_t i = 0; i < unit_pages; ++i) content.fill(&page_words[i * bench::kPageWords], first + i, 1);
      const auto* in = reinterpret_cast<const char*>(page_words.data());
      const std::size_t size = codec == Codec::kLz4
                                   ? static_cast<std::size_t>(LZ4_compress_default(
                                         in, out.data(), static_cast<int>(unit), static_cast<int>(out.size())))
                                   : ZSTD_compress(out.data(), out.size(), in, unit, 1);
      begin_.push_back(bytes_.size());
      bytes_.insert(bytes_.end(), out.begin(), out.begin() + static_cast<std::ptrdiff_t>(size));
    }
    begin_.push_back(bytes_.size());
  }

  void load(std::uint64_t first, std::uint64_t pages, std::byte* to) {
    for (std::uint64_t unit = first / unit_pages_; unit * unit_pages_ < first + pages;
         ++unit, to += unit_pages_ * kPageBytes) {
      const char* in = bytes_.data() + begin_[unit];
      const std::size_t size = begin_[unit + 1] - begin_[unit];
      const std::size_t bytes = unit_pages_ * kPageBytes;
      if (codec_ == Codec::kLz4) {
        LZ4_decompress_safe(in, reinterpret_cast<char*>(to), static_cast<int>(size), static_cast<int>(bytes));
      } else {
        ZSTD_decompressDCtx(context_, to, bytes, in, size);
      }
    }
  }
  Blobs(const Blobs&) = delete;
  Blobs& operator=(const Blobs&) = delete;
  ~Blobs() { ZSTD_freeDCtx(context_); }

 private:
  Codec codec_;
  std::uint64_t unit_pages_;
  std::vector<std::size_t> begin_;
  std::vector<char> bytes_;
  ZSTD_DCtx* context_ = ZSTD_createDCtx();
};

void measure_decompression(const Plan& plan) {
  struct Case {
    const char* name;
    Blobs::Codec codec;
    std::uint64_t unit_pages;
  };
  for (const Case& each :
       {Case{"lz4, 4 KiB units", Blobs::Codec::kLz4, 1}, Case{"zstd 1, 4 KiB units", Blobs::Codec::kZstd, 1},
        Case{"lz4, 16 KiB units", Blobs::Codec::kLz4, 4}, Case{"zstd 1, 16 KiB units", Blobs::Codec::kZstd, 4}}) {
    Blobs blobs(each.codec, plan.pages, each.unit_pages);
    std::vector<std::byte> buffer(each.unit_pages * kPageBytes);
    const bench::Permutation order(plan.pages / each.unit_pages, 9);
    measure(plan, std::string("decompress scattered units, ") + each.name, "unit", [&] {
      return nanoseconds_each(plan.pages / each.unit_pages, [&] {
        for (std::uint64_t unit = 0; unit < plan.pages / each.unit_pages; ++unit) {
          blobs.load(order(unit) * each.unit_pages, each.unit_pages, buffer.data());
        }
      });
    });
    measure_loop(plan, std::string("userfaultfd copy and decompress, scattered, ") + each.name, Placement::kSameCpu,
                 each.unit_pages, true,
                 [&](std::uint64_t first, std::uint64_t pages, std::byte* to) { blobs.load(first, pages, to); });
  }
}

bool parse(int argc, char** argv, Plan& plan) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    const std::string_view text = argv[i + 1];
    std::uint64_t value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size() || value == 0 || value > 65536) return false;
    if (name == "--size") {
      plan.pages = (value << 20) / kPageBytes;
    } else if (name == "--rounds") {
      plan.rounds = static_cast<unsigned>(value);
    } else {
      return false;
    }
  }
  return argc % 2 == 1;
}

}  // namespace

int main(int argc, char** argv) {
  Plan plan;
  if (!parse(argc, argv, plan)) {
    std::fprintf(stderr, "usage: bench_floor [--size MIB] [--rounds N]\n");
    return 2;
  }
  measure_kernel(plan);
  measure_copying(plan);
  measure_faults(plan);
  measure_decompression(plan);
  return 0;
}
