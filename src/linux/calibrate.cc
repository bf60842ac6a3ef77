#include "linux/calibrate.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include <algorithm>
#include <atomic>

#include "linux/plain.h"
#include "linux/raw_clone.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPages = kPagesPerHuge;
constexpr int kTouches = 12;
constexpr std::int64_t kPatience = 1'000'000'000;  // for one message of our own helper

// At most eight figures of one thing.
class Figures {
 public:
  void add(std::int64_t figure) noexcept {
    if (count_ < 8) figures_[count_++] = figure;
  }
  [[nodiscard]] std::int64_t median() noexcept { return sorted(count_ / 2); }
  // What it costs when nobody else wants the processor. Wake-ups on a busy machine wait for time slices of others,
  // hundreds of times longer than the wake-up itself, and more often than not; the lowest figure may be a fluke.
  [[nodiscard]] std::int64_t undisturbed() noexcept { return sorted(count_ > 1 ? 1 : 0); }

 private:
  [[nodiscard]] std::int64_t sorted(std::size_t i) noexcept {
    std::sort(figures_, figures_ + count_);
    return i < count_ ? figures_[i] : 0;
  }
  std::int64_t figures_[8] = {};
  std::size_t count_ = 0;
};

// What the helper does: touches page after page and notes when it did and when it went on.
struct Touches {
  volatile unsigned char* first = nullptr;
  timespec before[kTouches] = {};
  timespec after[kTouches] = {};
};

WHIMBREL_PLAIN void touch_all(void* argument) {
  auto* const touches = static_cast<Touches*>(argument);
  for (int i = 0; i < kTouches; ++i) {
    plain_call(SYS_clock_gettime, CLOCK_MONOTONIC, reinterpret_cast<long>(&touches->before[i]), 0, 0, 0);
    touches->first[static_cast<std::size_t>(i) * kPageSize] = 1;
    plain_call(SYS_clock_gettime, CLOCK_MONOTONIC, reinterpret_cast<long>(&touches->after[i]), 0, 0, 0);
  }
}

std::int64_t nanoseconds(const timespec& t) noexcept { return t.tv_sec * 1'000'000'000 + t.tv_nsec; }

class Calibration {
 public:
  Calibration(UserfaultMmu& mmu, const Clock& clock) noexcept : mmu_(mmu), clock_(clock) {}
  ~Calibration() {
    if (!window_.empty()) mmu_.close_window(window_);
    if (!source_window_.empty()) mmu_.close_window(source_window_);
    if (home_ != nullptr) {
      // Not while it is watched: that would wait for a reader, which is us.
      (void)mmu_.unwatch(home());
      sys::munmap(home_, kPages * kPageSize);
    }
  }
  Calibration(const Calibration&) = delete;
  Calibration& operator=(const Calibration&) = delete;

  Result<Costs> run() noexcept {
    const std::int64_t start = clock_.now_ns();
    const Result<void> ready = prepare();
    if (!ready) return std::unexpected(ready.error());
    Figures call;
    for (int i = 0; i < 8; ++i) {
      const std::int64_t t = clock_.now_ns();
      (void)sys::gettid();
      call.add(clock_.now_ns() - t);
    }
    costs_.system_call = call.median();
    measure(kPages, 1, &Costs::Curve::huge);  // does not count: it pays for page tables and cold caches
    measure(kPages, 3, &Costs::Curve::huge);
    measure(Costs::kRun, kPages / Costs::kRun, &Costs::Curve::run);
    measure(1, 8, &Costs::Curve::one);
    if (failed_) return std::unexpected(error_);
    measure_faults();
    if (failed_) return std::unexpected(error_);
    costs_.took = clock_.now_ns() - start;
    return costs_;
  }

 private:
  [[nodiscard]] PageRange home() const noexcept { return {PageIndex::of(VirtualAddress(home_)), PageCount(kPages)}; }
  static std::byte* map() noexcept {
    const Result<void*> memory = sys::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    if (!memory) return nullptr;
    (void)sys::madvise(*memory, kPages * kPageSize, MADV_NOHUGEPAGE);
    return static_cast<std::byte*>(*memory);
  }
  void note(const Error& error) noexcept {
    if (!failed_) error_ = error;
    failed_ = true;
  }

  Result<void> prepare() noexcept {
    home_ = map();
    if (home_ == nullptr) return fail(Errc::kNoMemory, 0, "memory for calibration");
    // One huge page where possible: 512 first touches would take longer than all the rest. COPY costs the same for
    // every content, zeros too.
    const Result<PageRange> source = mmu_.open_window(PageCount(kPages), WindowKind::kHuge);
    if (!source) return std::unexpected(source.error());
    source_window_ = *source;
    source_ = mmu_.bytes(source_window_.first);
    *source_ = std::byte{1};
    const Result<PageRange> window = mmu_.open_window(PageCount(kPages), WindowKind::kSmall);
    if (!window) return std::unexpected(window.error());
    window_ = *window;
    return mmu_.watch(home());
  }

  // `calls` times each: pages copied home, moved out, dropped.
  void measure(std::uint64_t pages, std::uint64_t calls, std::int64_t Costs::Curve::*point) noexcept {
    Figures copy, move, discard;
    const PageCount count(pages);
    for (std::uint64_t i = 0; i < calls && !failed_; ++i) {
      const PageCount offset(i * pages % kPages);
      const PageIndex at = home().first + offset;
      const PageRange frames{window_.first + offset, count};
      const std::int64_t t0 = clock_.now_ns();
      const Progress copied = mmu_.copy(at, source_, count, Wake::kNo);
      const std::int64_t t1 = clock_.now_ns();
      const Progress moved = mmu_.move(frames.first, at, count, Wake::kNo);
      const std::int64_t t2 = clock_.now_ns();
      const Result<void> dropped = mmu_.discard(frames);
      const std::int64_t t3 = clock_.now_ns();
      if (copied.failed) note(copied.error);
      if (moved.failed) note(moved.error);
      if (!dropped) note(dropped.error());
      copy.add(t1 - t0);
      move.add(t2 - t1);
      discard.add(t3 - t2);
    }
    costs_.copy.*point = copy.median();
    costs_.move.*point = move.median();
    costs_.discard.*point = discard.median();
  }

  void measure_faults() noexcept {
    constexpr std::size_t kStackBytes = 32 * 1024;
    Touches touches;
    touches.first = reinterpret_cast<unsigned char*>(home_);
    std::atomic<std::uint32_t> helper{0};
    RawClone thread;
    thread.body = touch_all;
    thread.argument = &touches;
    // The source is done with by then but for its first page, which is what is copied.
    thread.stack_end = source_ + kPageSize + kStackBytes;
    thread.thread_id = &helper;
    const Result<void> started = raw_clone(thread);
    if (!started) return note(started.error());
    std::int64_t arrived[kTouches] = {};
    for (int i = 0; i < kTouches && !failed_;) {
      Message message;
      if (!mmu_.wait_for_message(kPatience)) note({Errc::kGone, 0, "no fault message while calibrating"});
      if (failed_ || mmu_.read_messages({&message, 1}) == 0) continue;
      arrived[i] = clock_.now_ns();
      const Progress copied = mmu_.copy(message.range.first, source_, PageCount(1), Wake::kYes);
      if (copied.failed) note(copied.error);
      ++i;
    }
    if (failed_) (void)mmu_.unwatch(home());  // lets the helper go
    wait_raw_thread(helper);
    Figures deliver, resume;
    for (int i = kTouches - 8; i < kTouches; ++i) {  // the first ones are cold
      deliver.add(arrived[i] - nanoseconds(touches.before[i]));
      // Not from the end of the resolving call: on another processor the toucher goes on before that.
      resume.add(nanoseconds(touches.after[i]) - arrived[i] - costs_.copy.one);
    }
    costs_.deliver = std::max<std::int64_t>(deliver.undisturbed(), 0);
    costs_.resume = std::max<std::int64_t>(resume.undisturbed(), 0);
  }

  UserfaultMmu& mmu_;
  const Clock& clock_;
  std::byte* home_ = nullptr;
  std::byte* source_ = nullptr;
  PageRange window_;
  PageRange source_window_;
  Costs costs_;
  bool failed_ = false;
  Error error_{};
};

}  // namespace

std::int64_t Costs::Curve::of(PageCount pages) const noexcept {
  const auto n = static_cast<std::int64_t>(pages.raw());
  if (n <= 0) return 0;
  const auto line = [n](std::int64_t x0, std::int64_t y0, std::int64_t x1, std::int64_t y1) {
    return y0 + (y1 - y0) * (n - x0) / (x1 - x0);
  };
  const std::int64_t cost = n <= static_cast<std::int64_t>(kRun)
                                ? line(1, one, kRun, run)
                                : line(kRun, run, static_cast<std::int64_t>(kPages), huge);
  return std::max<std::int64_t>(cost, 0);
}

Result<Costs> calibrate(UserfaultMmu& mmu, const Clock& clock) noexcept { return Calibration(mmu, clock).run(); }

}  // namespace whimbrel
