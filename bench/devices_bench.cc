// What the devices that keep contents in memory cost: time per page stored, loaded and verified, and memory held.
//
//   devices_bench [--benchmark_filter=zstd] [--benchmark_out=FILE]
//
// Times are CPU time of the one thread that works. `ratio` is contents over memory held, all overhead included (a
// small store shows its one or two spare segments of 2 MiB there), `overhead` memory held over bytes of blobs. Loads go
// to units in random order over the whole store (64 MiB of contents; override with WHIMBREL_BENCH_MIB), so they find it
// cold, as page faults do.
#include <benchmark/benchmark.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "bench/content.h"
#include "bench/mapped_memory.h"
#include "devices/device_spec.h"

namespace {

using whimbrel::DeviceHandle;
using whimbrel::DeviceOp;
using whimbrel::DeviceSlot;

constexpr std::size_t kPage = bench::kPageBytes;

std::size_t pages_in_all() {
  const char* text = std::getenv("WHIMBREL_BENCH_MIB");
  const std::size_t mib = text != nullptr ? std::strtoull(text, nullptr, 10) : 64;
  return (mib == 0 ? 64 : mib) << 20 >> 12;
}

struct Buffer {
  explicit Buffer(std::size_t pages)
      : bytes(static_cast<std::byte*>(std::aligned_alloc(kPage, pages * kPage)), std::free) {}
  std::unique_ptr<std::byte, void (*)(void*)> bytes;
};

// The contents of one mix, made once: making them takes longer than storing them.
const std::byte* contents_of(bench::Mix mix) {
  static std::vector<std::pair<bench::Mix, Buffer>> made;
  for (const auto& [known, buffer] : made) {
    if (known == mix) return buffer.bytes.get();
  }
  const std::size_t pages = pages_in_all();
  Buffer& buffer = made.emplace_back(mix, Buffer(pages)).second;
  const bench::Content content(mix, 1);
  for (std::size_t page = 0; page < pages; ++page) {
    content.fill(reinterpret_cast<std::uint64_t*>(buffer.bytes.get() + page * kPage), page, 1);
  }
  return buffer.bytes.get();
}

// A device full of one mix of contents.
class Store {
 public:
  Store(const std::string& spec, bench::Mix mix) : contents_(contents_of(mix)) {
    whimbrel::SpecMessage message;
    auto made = whimbrel::make_device(spec, {.memory = memory_, .kinds = whimbrel::built_in_devices()}, message);
    if (!made) {
      std::fprintf(stderr, "%s\n", message.c_str());
      std::exit(1);
    }
    device_ = std::move(*made);
    unit_ = device_->traits().unit_pages;
    for (std::size_t i = 0; i < pages_in_all() / unit_; ++i) slots_.push_back(device_->reserve(unit_).value());
  }
  ~Store() {
    for (const DeviceSlot slot : slots_) device_->release(slot, unit_);
  }
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  void transfer(DeviceOp::Kind kind, std::size_t unit, std::uint32_t page, std::uint32_t pages, std::byte* memory) {
    DeviceOp op{.kind = kind, .first = slots_[unit] + page, .pages = pages, .memory = memory};
    whimbrel::DeviceBatch batch{.ops = {&op, 1}};
    device_->submit(batch);
    if (!op.result) std::abort();
  }
  void store(std::size_t unit) { transfer(DeviceOp::Kind::kStore, unit, 0, unit_, const_cast<std::byte*>(at(unit))); }
  void store_all() {
    for (std::size_t i = 0; i < units(); ++i) store(i);
  }
  [[nodiscard]] std::size_t units() const { return slots_.size(); }
  [[nodiscard]] std::uint32_t unit_pages() const { return unit_; }
  [[nodiscard]] const std::byte* at(std::size_t unit) const { return contents_ + unit * unit_ * kPage; }
  [[nodiscard]] bool verify(std::size_t unit) { return device_->verify(slots_[unit], unit_, at(unit)).value(); }

  void report(benchmark::State& state, std::int64_t pages) {
    while (device_->maintain(1 << 20)) {
    }
    const whimbrel::DeviceStats stats = device_->stats();
    state.SetBytesProcessed(pages * static_cast<std::int64_t>(kPage));
    state.counters["us_page"] =
        benchmark::Counter(static_cast<double>(pages) / 1e6, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
    state.counters["ratio"] = static_cast<double>(stats.stored_pages * kPage) / static_cast<double>(stats.held_bytes);
    state.counters["overhead"] = static_cast<double>(stats.held_bytes) / static_cast<double>(stats.compressed_bytes);
    state.counters["raw"] = static_cast<double>(stats.raw_pages) / static_cast<double>(stats.stored_pages);
  }

 private:
  bench::MappedMemory memory_;
  DeviceHandle device_;
  const std::byte* contents_;
  std::vector<DeviceSlot> slots_;
  std::uint32_t unit_ = 1;
};

// Units in an order that no prefetcher follows; visits each before any again (the step is prime to most counts).
class Shuffle {
 public:
  explicit Shuffle(std::size_t units) : units_(units) {}
  std::size_t next() { return at_ = (at_ + 7'368'787) % units_; }

 private:
  std::size_t units_;
  std::size_t at_ = 0;
};

void bm_store(benchmark::State& state, const std::string& spec, bench::Mix mix) {
  Store store(spec, mix);
  store.store_all();  // first touch of the store's memory is not what is measured
  std::size_t unit = 0;
  for (auto _ : state) {
    store.store(unit);
    unit = (unit + 1) % store.units();
  }
  store.report(state, state.iterations() * store.unit_pages());
}

void bm_load(benchmark::State& state, const std::string& spec, bench::Mix mix) {
  Store store(spec, mix);
  store.store_all();
  const Buffer buffer(store.unit_pages());
  Shuffle order(store.units());
  for (auto _ : state) {
    store.transfer(DeviceOp::Kind::kLoad, order.next(), 0, store.unit_pages(), buffer.bytes.get());
    benchmark::ClobberMemory();
  }
  store.report(state, state.iterations() * store.unit_pages());
}

// One page of each unit: what a single fault pays.
void bm_load_page(benchmark::State& state, const std::string& spec, bench::Mix mix) {
  Store store(spec, mix);
  store.store_all();
  const Buffer buffer(1);
  Shuffle order(store.units());
  for (auto _ : state) {
    const std::size_t unit = order.next();
    store.transfer(DeviceOp::Kind::kLoad, unit, static_cast<std::uint32_t>(unit) % store.unit_pages(), 1,
                   buffer.bytes.get());
    benchmark::ClobberMemory();
  }
  store.report(state, state.iterations());
}

void bm_verify(benchmark::State& state, const std::string& spec, bench::Mix mix) {
  Store store(spec, mix);
  store.store_all();
  Shuffle order(store.units());
  for (auto _ : state) {
    if (!store.verify(order.next())) std::abort();
  }
  store.report(state, state.iterations() * store.unit_pages());
}

void register_all() {
  const char* specs[] = {"ram:unit=16K",      "lz4:unit=4K",   "lz4:unit=16K",  "lz4:unit=64K",
                         "zstd:unit=4K",      "zstd:unit=16K", "zstd:unit=64K", "zstd:unit=16K,level=3",
                         "chain:lz4@4G,zstd", "mirror:lz4,lz4"};
  struct Part {
    const char* name;
    void (*run)(benchmark::State&, const std::string&, bench::Mix);
    bool all_mixes;
  };
  const Part parts[] = {{"store", bm_store, true},
                        {"load", bm_load, true},
                        {"load_page", bm_load_page, false},
                        {"verify", bm_verify, false}};
  for (const char* spec : specs) {
    for (const Part& part : parts) {
      for (const bench::Mix mix : bench::kAllMixes) {
        if (!part.all_mixes && mix != bench::Mix::kMixed) continue;
        const std::string name = std::string(part.name) + "/" + spec + "/" + bench::mix_name(mix);
        benchmark::RegisterBenchmark(name.c_str(), part.run, std::string(spec), mix)->Unit(benchmark::kMicrosecond);
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  register_all();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
  return 0;
}
