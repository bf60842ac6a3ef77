// How fast program memory goes to the memory of a mirror device and comes home, beside a plain memcpy of the same
// bytes.
//
//   LD_PRELOAD=.../libwhimbrel-mirror.so bench_mirror [--mib N] [--rounds N] [--node N]
//
// An ordinary client of the device: it links nothing of the project. Every round measures every figure, the memcpy
// first and last, so that a change of the machine's speed meets all of them; medians over the rounds are printed as
// JSON lines, and every byte is checked after each way. `to device` is one MIGRATE_TO_DEV of all the memory: the
// command also delivers what the device sees to a buffer, which is a memcpy of its own. `home` is one MIGRATE_TO_SYS,
// `fault` a read of each unit. Exit: 0 right, 1 wrong contents or a failed command, 2 usage, 77 no device here.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bench/region.h"
#include "tests/mirror/dmirror_abi.h"

namespace {

constexpr std::size_t kPage = DMIRROR_PAGE, kUnit = kPage * DMIRROR_UNIT_PAGES;

struct Plan {
  std::size_t mib = 256;
  unsigned rounds = 7;
  unsigned node = 0;
};

// Program memory, 2 MiB aligned, of one size of pages.
class Memory {
 public:
  Memory(std::size_t bytes, bool huge) : region_(bytes + kUnit), bytes_(bytes) {
    const auto at = (reinterpret_cast<std::uintptr_t>(region_.as<char>()) + kUnit - 1) / kUnit * kUnit;
    memory_ = reinterpret_cast<std::uint64_t*>(at);
    madvise(memory_, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    for (std::size_t i = 0; i < bytes / 8; ++i) memory_[i] = word(i);
  }
  [[nodiscard]] std::uint64_t* data() const { return memory_; }
  [[nodiscard]] std::size_t bytes() const { return bytes_; }
  [[nodiscard]] std::size_t pages() const { return bytes_ / kPage; }
  static std::uint64_t word(std::size_t i) { return i * 0x9e3779b97f4a7c15 + 1; }
  static void check(const std::uint64_t* words, std::size_t bytes, const char* where) {
    for (std::size_t i = 0; i < bytes / 8; ++i) {
      if (words[i] != word(i))
        throw std::runtime_error("wrong contents " + std::string(where) + " at word " + std::to_string(i));
    }
  }

 private:
  bench::Region region_;
  std::uint64_t* memory_;
  std::size_t bytes_;
};

class Device {
 public:
  explicit Device(unsigned node) {
    const std::string path = DMIRROR_DEFAULT_PREFIX + std::to_string(node);
    fd_ = open(path.c_str(), O_RDWR);
    if (fd_ >= 0) return;
    std::fprintf(stderr, "bench_mirror: cannot open %s: %s\n", path.c_str(), std::strerror(errno));
    std::exit(77);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { close(fd_); }
  void run(dmirror_nr number, const Memory& memory, void* buffer) const {
    dmirror_command command{reinterpret_cast<std::uint64_t>(memory.data()), reinterpret_cast<std::uint64_t>(buffer),
                            memory.pages(), 0, 0};
    if (ioctl(fd_, DMIRROR_REQUEST(number), &command) != 0) {
      throw std::runtime_error("command " + std::to_string(number) + ": " + std::strerror(errno));
    }
  }

 private:
  int fd_;
};

template <class Body>
double seconds(Body body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Times {
  std::vector<double> values;
  void add(double value) { values.push_back(value); }
  [[nodiscard]] double median() {
    std::ranges::sort(values);
    return values[values.size() / 2];
  }
};

struct Ways {
  Times out, home, fault;
};

void one_round(const Device& device, const Memory& memory, char* buffer, std::size_t fault_step, Ways& ways) {
  std::memset(buffer, 0, memory.bytes());
  ways.out.add(seconds([&] { device.run(DMIRROR_MIGRATE_TO_DEV, memory, buffer); }));
  Memory::check(reinterpret_cast<std::uint64_t*>(buffer), memory.bytes(), "as the device sees it");
  ways.home.add(seconds([&] { device.run(DMIRROR_MIGRATE_TO_SYS, memory, buffer); }));
  Memory::check(memory.data(), memory.bytes(), "after the way home");
  device.run(DMIRROR_MIGRATE_TO_DEV, memory, buffer);
  volatile char sink = 0;
  ways.fault.add(seconds([&] {
    for (std::size_t at = 0; at < memory.bytes(); at += fault_step) {
      sink = static_cast<char>(sink + reinterpret_cast<const volatile char*>(memory.data())[at]);
    }
  }));
  Memory::check(memory.data(), memory.bytes(), "after the faults");
}

// Resident memory of this process in bytes: with everything on the device, what is more than before is metadata, since
// device memory is memory of this process as well.
double resident() {
  std::FILE* file = std::fopen("/proc/self/statm", "r");
  unsigned long size = 0, pages = 0;
  if (file == nullptr || std::fscanf(file, "%lu %lu", &size, &pages) != 2)
    throw std::runtime_error("no /proc/self/statm");
  std::fclose(file);
  return static_cast<double>(pages) * kPage;
}

void report(const char* what, double time, double copy, double mib) {
  std::printf("{\"way\": \"%s\", \"ms\": %.2f, \"mib_per_s\": %.0f, \"percent_of_memcpy\": %.1f}\n", what, time * 1e3,
              mib / time, 100 * copy / time);
}

void measure(const Plan& plan) {
  const std::size_t bytes = plan.mib << 20;
  const Device device(plan.node);
  const Memory huge(bytes, true), base(bytes, false);
  const bench::Region buffer(bytes);
  std::memset(buffer.as<char>(), 1, bytes);
  Times copies;
  Ways huge_ways, base_ways;
  // The first time, so that no memory is left over from another.
  const double before = resident();
  device.run(DMIRROR_MIGRATE_TO_DEV, base, buffer.as<char>());
  const double metadata = (resident() - before) / static_cast<double>(base.pages());
  device.run(DMIRROR_MIGRATE_TO_SYS, base, buffer.as<char>());
  for (unsigned round = 0; round <= plan.rounds; ++round) {
    if (round == 1) copies = {}, huge_ways = {}, base_ways = {};  // the first one warms up
    const auto copy = [&] { std::memcpy(buffer.as<char>(), base.data(), bytes); };
    copies.add(seconds(copy));
    one_round(device, huge, buffer.as<char>(), kUnit, huge_ways);
    one_round(device, base, buffer.as<char>(), kPage, base_ways);
    copies.add(seconds(copy));
  }
  const double copy = copies.median(), mib = static_cast<double>(plan.mib);
  report("memcpy", copy, copy, mib);
  report("2 MiB units to device", huge_ways.out.median(), copy, mib);
  report("2 MiB units home", huge_ways.home.median(), copy, mib);
  report("2 MiB units home by faults", huge_ways.fault.median(), copy, mib);
  report("4 KiB pages to device", base_ways.out.median(), copy, mib);
  report("4 KiB pages home", base_ways.home.median(), copy, mib);
  report("4 KiB pages home by faults", base_ways.fault.median(), copy, mib);
  std::printf("{\"way\": \"512 single faults over one fault of 2 MiB\", \"ratio\": %.1f}\n",
              base_ways.fault.median() / huge_ways.fault.median());
  std::printf("{\"way\": \"memory that grew while all pages were on the device\", \"bytes_per_page\": %.1f}\n",
              metadata);
}

bool parse(int argc, char** argv, Plan& plan) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i], text = argv[i + 1];
    unsigned value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc{} || end != text.data() + text.size()) return false;
    if (name == "--mib" && value >= 2)
      plan.mib = value;
    else if (name == "--rounds" && value >= 1)
      plan.rounds = value;
    else if (name == "--node" && value < DMIRROR_NODES)
      plan.node = value;
    else
      return false;
  }
  return argc % 2 == 1;
}

}  // namespace

int main(int argc, char** argv) {
  Plan plan;
  if (!parse(argc, argv, plan)) {
    std::fprintf(stderr, "usage: bench_mirror [--mib N] [--rounds N] [--node N]\n");
    return 2;
  }
  try {
    measure(plan);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_mirror: %s\n", error.what());
    return 1;
  }
  return 0;
}
