#include "bench/patterns.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <thread>

#include "bench/random.h"

namespace bench {
namespace {

// Times each access when asked to; otherwise it costs one predictable branch.
class AccessTimer {
 public:
  AccessTimer(bool enabled, Histogram& histogram) : enabled_(enabled), histogram_(histogram) {}
  template <class Access>
  bool operator()(Access access) {
    if (!enabled_) return access();
    const std::int64_t start = monotonic_ns();
    const bool right = access();
    histogram_.add(monotonic_ns() - start);
    return right;
  }

 private:
  bool enabled_;
  Histogram& histogram_;
};

// Order-dependent, so that a side that did other accesses cannot agree by chance.
constexpr std::uint64_t fold(std::uint64_t checksum, std::uint64_t value) {
  return checksum * 0x100000001B3ull + value;
}

}  // namespace

PageArray::PageArray(const PatternOptions& options)
    : options_(options),
      content_(options.mix, options.seed),
      region_(options.pages * kPageBytes, options.huge),
      words_(region_.as<std::uint64_t>()),
      generation_(options.pages, 0) {}

const std::vector<std::string>& PageArray::names() {
  static const std::vector<std::string> kNames = {"fill", "seqread", "stride2",  "randread", "randwrite",
                                                  "zipf", "chase",   "twophase", "seqwrite", "touch"};
  return kNames;
}

bool PageArray::known(std::string_view name) { return std::ranges::find(names(), name) != names().end(); }

std::vector<Result> PageArray::run(std::string_view name) {
  if (name == "fill") return {fill()};
  if (name == "seqread") return {sequential_read()};
  if (name == "seqwrite") return {sequential_write()};
  if (name == "stride2") return {stride_read(2)};
  if (name == "randread") return {random_read()};
  if (name == "randwrite") return {random_write()};
  if (name == "zipf") return {zipf_read_mostly()};
  if (name == "chase") return {chase()};
  if (name == "twophase") return two_phase();
  if (name == "touch") return {touch_fresh()};
  throw std::invalid_argument("unknown pattern '" + std::string(name) + "'");
}

std::uint64_t PageArray::wrong_pages() const {
  std::uint64_t wrong = 0;
  for (std::uint64_t index = 0; index < options_.pages; ++index) {
    wrong += content_.verify(page(index), index, generation_[index]) ? 0 : 1;
  }
  return wrong;
}

void PageArray::corrupt(std::uint64_t index) { page(index % options_.pages)[kPageWords / 2 + 3] ^= 0x10; }

void PageArray::write(std::uint64_t index) {
  ++generation_[index];
  restamp(page(index), tag(index), content_.class_of(index) == PageClass::kSame);
}

std::uint64_t PageArray::scaled(double accesses_per_page) const {
  const double accesses = accesses_per_page * options_.random_scale * static_cast<double>(options_.pages);
  return std::max<std::uint64_t>(1, static_cast<std::uint64_t>(accesses));
}

Result PageArray::fill() {
  Measurement measurement("fill");
  for (std::uint64_t index = 0; index < options_.pages; ++index) {
    content_.fill(page(index), index, generation_[index]);
  }
  return measurement.finish(options_.pages, options_.pages * kPageBytes, 0, options_.pages);
}

Result PageArray::sequential_read() {
  Measurement measurement("seqread");
  std::uint64_t wrong = 0;
  std::uint64_t checksum = 0;
  for (std::uint64_t index = 0; index < options_.pages; ++index) {
    wrong += read(index) ? 0 : 1;
    checksum = fold(checksum, page(index)[0]);
  }
  return measurement.finish(options_.pages, options_.pages * kPageBytes, wrong, checksum);
}

Result PageArray::sequential_write() {
  Measurement measurement("seqwrite");
  for (std::uint64_t index = 0; index < options_.pages; ++index) write(index);
  return measurement.finish(options_.pages, options_.pages * kPageBytes, 0, options_.pages);
}

Result PageArray::stride_read(std::uint64_t stride) {
  Measurement measurement("stride" + std::to_string(stride));
  std::uint64_t wrong = 0;
  std::uint64_t checksum = 0;
  std::uint64_t accesses = 0;
  for (std::uint64_t index = 0; index < options_.pages; index += stride, ++accesses) {
    wrong += read(index) ? 0 : 1;
    checksum = fold(checksum, page(index)[0]);
  }
  return measurement.finish(accesses, accesses * kPageBytes, wrong, checksum);
}

Result PageArray::random_read() {
  const std::uint64_t each = std::max<std::uint64_t>(1, scaled(0.5) / options_.threads);
  std::atomic<std::uint64_t> wrong{0};
  std::atomic<std::uint64_t> checksum{0};
  std::vector<Histogram> histograms(options_.threads);
  Measurement measurement("randread");
  const auto body = [&](unsigned thread) {
    Random random(options_.seed + 11 + thread * 1000);
    AccessTimer timed(options_.latency, histograms[thread]);
    std::uint64_t bad = 0;
    std::uint64_t sum = 0;
    for (std::uint64_t i = 0; i < each; ++i) {
      const std::uint64_t index = random.below(options_.pages);
      bad += timed([&] { return read(index); }) ? 0 : 1;
      sum = fold(sum, page(index)[0]);
    }
    wrong += bad;
    checksum += sum;
  };
  std::vector<std::thread> helpers;
  for (unsigned thread = 1; thread < options_.threads; ++thread) helpers.emplace_back(body, thread);
  body(0);
  for (std::thread& helper : helpers) helper.join();
  const std::uint64_t accesses = each * options_.threads;
  Result result = measurement.finish(accesses, accesses * kPageBytes, wrong, checksum);
  for (const Histogram& histogram : histograms) result.latency.merge(histogram);
  return result;
}

Result PageArray::random_write() {
  const std::uint64_t accesses = scaled(0.5);
  Random random(options_.seed + 12);
  Histogram histogram;
  AccessTimer timed(options_.latency, histogram);
  Measurement measurement("randwrite");
  for (std::uint64_t i = 0; i < accesses; ++i) {
    const std::uint64_t index = random.below(options_.pages);
    timed([&] {
      write(index);
      return true;
    });
  }
  Result result = measurement.finish(accesses, accesses * kPageBytes, 0, accesses);
  result.latency = histogram;
  return result;
}

Result PageArray::zipf_read_mostly() {
  const std::uint64_t accesses = scaled(2.0);
  const Zipf zipf(options_.pages, 0.99);
  const Permutation scatter(options_.pages, options_.seed + 13);  // popular pages are not neighbours
  Random random(options_.seed + 14);
  Histogram histogram;
  AccessTimer timed(options_.latency, histogram);
  std::uint64_t wrong = 0;
  std::uint64_t checksum = 0;
  Measurement measurement("zipf");
  for (std::uint64_t i = 0; i < accesses; ++i) {
    const std::uint64_t index = scatter(zipf(random));
    const bool writes = random.below(20) == 0;
    wrong += timed([&] {
      const bool right = read(index);
      if (writes) write(index);
      return right;
    })
                 ? 0
                 : 1;
    checksum = fold(checksum, page(index)[0]);
  }
  Result result = measurement.finish(accesses, accesses * kPageBytes, wrong, checksum);
  result.latency = histogram;
  return result;
}

// The address of the next page depends on the word loaded from this one, so nothing can run ahead.
Result PageArray::chase() {
  const std::uint64_t accesses = scaled(0.5);
  const Permutation order(options_.pages, options_.seed + 15);
  Histogram histogram;
  AccessTimer timed(options_.latency, histogram);
  std::uint64_t wrong = 0;
  std::uint64_t checksum = 0;
  std::uint64_t position = 0;
  Measurement measurement("chase");
  for (std::uint64_t i = 0; i < accesses; ++i) {
    const std::uint64_t index = order(position);
    std::uint64_t loaded = 0;
    wrong += timed([&] {
      loaded = *static_cast<volatile std::uint64_t*>(page(index));
      return loaded == tag(index);
    })
                 ? 0
                 : 1;
    checksum = fold(checksum, loaded);
    position = (position + (loaded >> 8) - index) % options_.pages;  // + 1 when the page is the right one
  }
  Result result = measurement.finish(accesses, accesses * 64, wrong, checksum);
  result.latency = histogram;
  return result;
}

Result PageArray::working_set(const char* name, std::uint64_t first, std::uint64_t count, std::uint64_t accesses,
                              std::uint64_t seed) {
  Random random(seed);
  Histogram histogram;
  AccessTimer timed(options_.latency, histogram);
  std::uint64_t wrong = 0;
  std::uint64_t checksum = 0;
  // The set lies scattered over the array, as the live part of a heap does.
  const Permutation scatter(options_.pages, options_.seed + 16);
  Measurement measurement(name);
  for (std::uint64_t i = 0; i < accesses; ++i) {
    const std::uint64_t index = scatter(first + random.below(count));
    const bool writes = random.below(10) == 0;
    wrong += timed([&] {
      const bool right = read(index);
      if (writes) write(index);
      return right;
    })
                 ? 0
                 : 1;
    checksum = fold(checksum, page(index)[0]);
  }
  Result result = measurement.finish(accesses, accesses * kPageBytes, wrong, checksum);
  result.latency = histogram;
  return result;
}

// Two disjoint working sets: the first, the second, the first again.
std::vector<Result> PageArray::two_phase() {
  const auto share = static_cast<std::uint64_t>(options_.set_share * static_cast<double>(options_.pages));
  const std::uint64_t count = std::clamp<std::uint64_t>(share, 1, std::max<std::uint64_t>(1, options_.pages / 2));
  const auto accesses =
      std::max<std::uint64_t>(1, static_cast<std::uint64_t>(4.0 * options_.random_scale * static_cast<double>(count)));
  return {working_set("twophase_a", 0, count, accesses, options_.seed + 17),
          working_set("twophase_b", options_.pages - count, count, accesses, options_.seed + 18),
          working_set("twophase_a2", 0, count, accesses, options_.seed + 19)};
}

// First touch of memory nobody has used: one word written in each page, then all given back.
Result PageArray::touch_fresh() const {
  Measurement measurement("touch");
  std::uint64_t not_empty = 0;
  {
    const Region fresh(options_.pages * kPageBytes, options_.huge);
    auto* words = fresh.as<volatile std::uint64_t>();
    for (std::uint64_t index = 0; index < options_.pages; ++index) {
      words[index * kPageWords] = index;
      not_empty += words[index * kPageWords + 1] == 0 ? 0 : 1;
    }
  }
  return measurement.finish(options_.pages, 0, not_empty, options_.pages);
}

}  // namespace bench
