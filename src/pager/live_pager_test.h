// For tests: a pager over the test's own process, with engine threads that the process's memory cannot stop.
//
// The whole process is managed: heap, stacks, the test framework's data. So everything the engine touches lies in
// reservations or in static memory, which is excluded.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <link.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "devices/compressed_device.h"
#include "devices/ram_device.h"
#include "devices/switch_device.h"
#include "linux/clock.h"
#include "linux/raw_engine_threads.h"
#include "linux/reservation.h"
#include "linux/sys.h"
#include "linux/userfault_mmu.h"
#include "pager/pager.h"
#include "port/wake_placement.h"
#include "preload/libc_walk.h"

namespace whimbrel::live {

#define NEEDS_RAW_THREADS() \
  if (!kRawThreadsUsable) GTEST_SKIP() << "engine threads unknown to libc cannot run under this sanitizer"

inline constexpr std::size_t kMiB = std::size_t{1} << 20;

enum class DeviceKind { kRam, kLz4, kZstd };

// Passes everything on to a real device, or fails on demand.
class FaultyDevice final : public Device {
 public:
  explicit FaultyDevice(Device& device) : device_(device) {}
  DeviceTraits traits() const noexcept override { return device_.traits(); }
  DeviceStats stats() const noexcept override { return device_.stats(); }
  Result<DeviceSlot> reserve(std::uint32_t pages) noexcept override { return device_.reserve(pages); }
  void release(DeviceSlot first, std::uint32_t pages) noexcept override { device_.release(first, pages); }
  void submit(DeviceBatch& batch) noexcept override {
    for (DeviceOp& op : batch.ops) {
      hold_while_told();
      if (op.kind == DeviceOp::Kind::kLoad) note_loader();
      const bool bad = op.kind == DeviceOp::Kind::kStore ? fail_stores.load() : fail_loads.load();
      if (bad) {
        op.result = fail(Errc::kDeviceIo, 5, "made to fail");
        continue;
      }
      DeviceBatch one{std::span<DeviceOp>(&op, 1)};
      device_.submit(one);
      device_.wait(one);
    }
  }
  void wait(DeviceBatch&) noexcept override {}
  bool maintain(std::size_t bytes) noexcept override { return device_.maintain(bytes); }
  void prepare_fork() noexcept override { device_.prepare_fork(); }
  void after_fork_in_parent() noexcept override { device_.after_fork_in_parent(); }
  void after_fork_in_child() noexcept override { device_.after_fork_in_child(); }

  std::atomic<std::uint64_t> loads_by_others{0};  // than the thread that was the first to load anything
  std::atomic<bool> fail_loads{false};
  std::atomic<bool> fail_stores{false};
  std::atomic<bool> hold{false};               // whatever comes waits until this is false again
  std::atomic<std::int64_t> delay_one_ns{0};   // the next operation takes so much longer

 private:
  // By the engine's own means: libc knows nothing of the threads that come here.
  void hold_while_told() {
    Event nobody;
    if (const std::int64_t delay = delay_one_ns.exchange(0); delay != 0) nobody.wait(nobody.value(), delay);
    while (hold) nobody.wait(nobody.value(), 1'000'000);
  }

  void note_loader() noexcept {
    const auto self = static_cast<std::uint32_t>(sys::gettid());
    std::uint32_t nobody = 0;
    if (first_loader_.compare_exchange_strong(nobody, self) || nobody == self) return;
    loads_by_others.fetch_add(1);
  }
  std::atomic<std::uint32_t> first_loader_{0};
  Device& device_;
};

struct LiveOptions {
  PagerConfig pager;
  DeviceKind device = DeviceKind::kLz4;
  std::uint64_t device_capacity = 0;
  const char* spec = nullptr;  // instead of the two: a device of this specification, which can be replaced
  AddressSpace::Config space;
  bool beside = false;  // faults are served as those of a thread that stays beside the fault thread
};

class AlwaysBeside final : public WakePlacement {
 public:
  bool begin(std::uint32_t) noexcept override { return true; }
  void end() noexcept override {}
};

class LivePager {
 public:
  // In static memory: engine threads use it.
  static LivePager& instance() {
    alignas(LivePager) static std::byte room[sizeof(LivePager)];
    return *reinterpret_cast<LivePager*>(room);
  }
  static LivePager& start(const LiveOptions& options) {
    if (is_running()) instance().stop();  // a test that failed half-way
    is_running() = true;
    return (::new (&instance()) LivePager)->open(options);
  }
  // Brings everything home and ends the engine; the program goes on.
  void stop() {
    command(Command::kBringAllHome);
    ASSERT_FALSE(failed_) << "not everything came home";
    quit_ = true;
    pager_->wake_event().advance();
    mmu_->interrupt();
    threads_->join(background_);
    threads_->join(fault_);
    space_->check_invariants();
    Pager::destroy(pager_);
    AddressSpace::destroy(space_);
    SwitchDevice::destroy(switch_);
    UserfaultMmu::destroy(mmu_);
    is_running() = false;
    this->~LivePager();
  }

  Pager& pager() { return *pager_; }
  PagerStats& stats() { return pager_->stats(); }
  FaultyDevice& device() { return *faulty_; }

  // fork() as the runtime does it. In the child the pager works on, with threads of its own.
  // `prepared` runs at the point where libc and others work before the copy is made.
  template <class Prepared>
  pid_t fork(Prepared prepared) {
    pager_->park();
    device_->prepare_fork();
    touch_what_fork_touches();
    prepared();
    const pid_t child = ::fork();
    if (child != 0) {
      device_->after_fork_in_parent();
      pager_->mark_shared_after_fork();
      pager_->unpark();
      return child;
    }
    tables_.reset_after_fork();
    store_.reset_after_fork();
    mmu_->reset_after_fork();
    device_->after_fork_in_child();
    threads_->forget_after_fork();
    if (!mmu_->reopen_in_child()) _exit(101);
    if (space_->recover_in_child() != 0) _exit(102);
    pager_->reset_in_child(nullptr);
    start_threads();
    return 0;
  }

  pid_t fork() {
    return fork([] {});
  }

  // Things that only engine threads may do, done by the background thread.
  enum class Command { kNone, kBringAllHome, kEvictRange, kBringHome, kPin, kUnpin, kRecount, kReplaceDevice, kNoteMapped };
  PageCount command(Command what, PageRange range = {}) {
    range_ = range;
    command_ = what;
    while (command_ != Command::kNone) {
      pager_->wake_event().advance();
      usleep(200);
    }
    return result_;
  }
  bool last_command_failed() const { return failed_; }
  // Of a device that can be replaced: what is stored from now on goes to another one.
  void replace_device(const char* spec) {
    spec_ = spec;
    command(Command::kReplaceDevice);
    ASSERT_FALSE(failed_) << spec;
  }
  std::uint64_t stored_pages() { return device_->stats().stored_pages; }
  std::uint64_t leaving_pages() { return switch_->leaving().stored_pages; }
  std::uint32_t leaving_devices() { return switch_->leaving().devices; }
  Mmu& mmu() { return *mmu_; }

 private:
  static bool& is_running() {
    static bool running = false;
    return running;
  }
  LivePager() = default;
  ~LivePager() = default;

  LivePager& open(const LiveOptions& with) {
    prepare_libc_walk();
    EXPECT_TRUE(tables_.open({}).has_value());
    EXPECT_TRUE(store_.open({}).has_value());
    UserfaultMmu::Options options;
    options.visibility = Visibility::kShared;
    mmu_ = UserfaultMmu::create(tables_, options).value();
    space_ = AddressSpace::create(*mmu_, tables_, clock_, with.space).value();
    if (with.spec != nullptr) {
      device_ = switch_ = SwitchDevice::create(tables_, make_part(with.spec)).value();
    } else if (with.device == DeviceKind::kRam) {
      RamDevice::Options ram;
      ram.unit_pages = 16;
      ram.capacity_bytes = with.device_capacity;
      device_ = RamDevice::create(store_, ram).value();
    } else {
      CompressedDevice::Options compressed;
      compressed.codec = with.device == DeviceKind::kLz4 ? CodecId::kLz4 : CodecId::kZstd;
      compressed.capacity_bytes = with.device_capacity;
      device_ = CompressedDevice::create(store_, compressed).value();
    }
    faulty_ = make_from<FaultyDevice>(tables_, *device_);
    PagerConfig config = with.pager;
    config.footprint = &footprint_;
    pager_ = Pager::create(*space_, *faulty_, config).value();
    EXPECT_TRUE(pager_->exclude(tables_.range()));
    EXPECT_TRUE(pager_->exclude(store_.range()));
    EXPECT_TRUE(pager_->exclude(mmu_->window_range()));
    // Data of the executable and of every library: engine threads run their code.
    dl_iterate_phdr(
        [](dl_phdr_info* info, std::size_t, void* self) {
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            const ElfW(Phdr)& segment = info->dlpi_phdr[i];
            if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) == 0) continue;
            const std::uint64_t at = info->dlpi_addr + segment.p_vaddr;
            EXPECT_TRUE(static_cast<LivePager*>(self)->pager_->exclude(
                PageRange::touching(VirtualAddress(at), VirtualAddress(at + segment.p_memsz))));
          }
          return 0;
        },
        this);
    service_ = make_from<FaultService>(tables_, *space_, pager_, nullptr);
    if (with.beside) service_->set_placement(&beside_);
    EngineThreadOptions thread_options;
    thread_options.keep = mmu_->descriptors().span();
    threads_ = make_from<RawEngineThreads>(tables_, tables_, thread_options);
    start_threads();
    return *this;
  }

  DeviceHandle make_part(const char* spec) {
    SpecMessage message;
    return make_device(spec, {.memory = store_, .kinds = built_in_devices()}, message).value();
  }

  void start_threads() {
    fault_ = threads_->start_first(&LivePager::serve, this).value();
    background_ = threads_->start_first(&LivePager::work, this).value();
  }

  static void serve(void* argument) {
    auto* self = static_cast<LivePager*>(argument);
    while (!self->quit_) {
      (void)self->mmu_->wait_for_message(100'000'000);
      (void)self->service_->run_once();
    }
  }

  static void work(void* argument) {
    auto* self = static_cast<LivePager*>(argument);
    while (!self->quit_) {
      const std::uint32_t seen = self->pager_->wake_event().value();
      self->obey();
      if (self->switch_ != nullptr && self->switch_->leaving().devices != 0 && self->switch_->retire()) self->pager_->note_evacuated();
      const std::int64_t pause = self->pager_->background_step();
      self->pager_->wake_event().wait(seen, pause);
    }
  }

  void obey() {
    switch (command_.load()) {
      case Command::kNone:
        return;
      case Command::kBringAllHome:
        failed_ = !pager_->bring_all_home();
        break;
      case Command::kEvictRange:
        result_ = pager_->evict_range(range_);
        break;
      case Command::kBringHome:
        failed_ = !pager_->bring_home(range_);
        break;
      case Command::kPin:
        failed_ = !pager_->pin(range_);
        break;
      case Command::kNoteMapped:
        pager_->note_mapped({&range_, 1}, true);
        break;
      case Command::kUnpin:
        pager_->unpin(range_);
        break;
      case Command::kRecount:
        pager_->recount();
        break;
      case Command::kReplaceDevice: {
        DeviceHandle made = make_part(spec_);
        pager_->hold_stores();
        failed_ = !switch_->replace(std::move(made));
        failed_ ? pager_->resume_stores()
                : pager_->resume_stores(switch_->first_in_use(), SwitchDevice::kPlaceSlots, switch_->leaving().unit_pages);
        break;
      }
    }
    command_ = Command::kNone;
  }

  class Tables final : public Footprint {
   public:
    explicit Tables(const Reservation& tables) : tables_(tables) {}
    std::uint64_t own_bytes() const noexcept override { return tables_.bytes_in_use(); }

   private:
    const Reservation& tables_;
  };

  SystemClock clock_;
  AlwaysBeside beside_;
  Reservation tables_;
  Reservation store_;
  Tables footprint_{tables_};
  FaultyDevice* faulty_ = nullptr;
  UserfaultMmu* mmu_ = nullptr;
  AddressSpace* space_ = nullptr;
  Device* device_ = nullptr;
  SwitchDevice* switch_ = nullptr;  // the same, if it can be replaced
  const char* spec_ = nullptr;
  Pager* pager_ = nullptr;
  FaultService* service_ = nullptr;
  RawEngineThreads* threads_ = nullptr;
  int fault_ = -1, background_ = -1;
  std::atomic<bool> quit_{false};
  std::atomic<Command> command_{Command::kNone};
  PageRange range_;
  PageCount result_;
  std::atomic<bool> failed_{false};
};

// Memory of the program, at a 2 MiB boundary.
class ProgramMemory {
 public:
  enum class Huge { kNever, kAdvised, kUnsaid };  // what the program has told the kernel
  explicit ProgramMemory(std::size_t bytes, Huge huge = Huge::kNever) : bytes_(bytes) {
    raw_ = static_cast<char*>(mmap(nullptr, whole(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    at_ = reinterpret_cast<std::uint64_t*>((reinterpret_cast<std::uintptr_t>(raw_) + 2 * kHugeSize - 1) &
                                           ~(kHugeSize - 1));
    mmap(at_, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    if (huge != Huge::kUnsaid) madvise(at_, bytes, huge == Huge::kAdvised ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  }
  ~ProgramMemory() { munmap(raw_, whole()); }
  ProgramMemory(const ProgramMemory&) = delete;
  ProgramMemory& operator=(const ProgramMemory&) = delete;

  [[nodiscard]] std::size_t pages() const { return bytes_ / kPageSize; }
  [[nodiscard]] std::uint64_t* page(std::size_t i) const { return at_ + i * (kPageSize / 8); }
  [[nodiscard]] PageRange range(std::size_t first, std::size_t count) const {
    return {PageIndex::of(VirtualAddress(page(first))), PageCount(count)};
  }
  // Every word of a page tells which page, which word, and a salt.
  void write(std::size_t i, std::uint64_t salt) const {
    std::uint64_t* words = page(i);
    for (std::size_t w = 0; w < kPageSize / 8; ++w) words[w] = expected(i, w, salt);
  }
  [[nodiscard]] std::size_t wrong_words(std::size_t i, std::uint64_t salt) const {
    const std::uint64_t* words = page(i);
    std::size_t wrong = 0;
    for (std::size_t w = 0; w < kPageSize / 8; ++w) wrong += words[w] != expected(i, w, salt) ? 1 : 0;
    return wrong;
  }
  // Half of each page compresses, the other half does not at all.
  static std::uint64_t expected(std::size_t i, std::size_t w, std::uint64_t salt) {
    if (w % 2 == 0) return i + salt;
    std::uint64_t x = i * 512 + w + salt * 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  }

 private:
  [[nodiscard]] std::size_t whole() const { return bytes_ + 2 * kHugeSize; }
  std::size_t bytes_;
  char* raw_;
  std::uint64_t* at_;
};

// A process of its own that looks at this one's memory every few milliseconds. Start it before the pager.
class OutsideSampler {
 public:
  OutsideSampler() {
    shared_ =
        static_cast<Shared*>(mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
    const pid_t watched = getpid();
    child_ = fork();
    if (child_ != 0) return;
    char path[64];
    std::snprintf(path, sizeof path, "/proc/%d/pagemap", watched);
    const int pagemap = ::open(path, O_RDONLY);
    static std::uint64_t words[16384];
    while (getppid() == watched) {
      const std::uint64_t first = shared_->first, count = shared_->count;
      std::uint64_t present = 0;
      for (std::uint64_t i = 0; i < count; i += std::size(words)) {
        const std::size_t n = std::min<std::size_t>(std::size(words), count - i);
        const ssize_t got = pread(pagemap, words, n * 8, static_cast<off_t>((first + i) * 8));
        for (ssize_t k = 0; k < got / 8; ++k) present += words[k] >> 63;
      }
      if (shared_->watching_all) sample_anonymous(watched);
      if (first == shared_->first && count != 0) {
        ++shared_->samples;
        if (present > shared_->most) shared_->most = present;
      }
      usleep(5000);
    }
    _exit(0);
  }
  ~OutsideSampler() {
    kill(child_, SIGKILL);
    waitpid(child_, nullptr, 0);
    munmap(shared_, sizeof(Shared));
  }
  OutsideSampler(const OutsideSampler&) = delete;
  OutsideSampler& operator=(const OutsideSampler&) = delete;
  void watch(PageRange range) {
    shared_->first = range.first.raw();
    shared_->count = range.count.raw();
  }
  [[nodiscard]] std::uint64_t most() const { return shared_->most; }
  // Resident private memory of the whole process.
  void watch_process() { shared_->watching_all = true; }
  [[nodiscard]] std::uint64_t most_anonymous() const { return shared_->most_anonymous; }
  [[nodiscard]] std::uint64_t samples() const { return shared_->samples; }

 private:
  struct Shared {
    std::atomic<std::uint64_t> first, count, most, samples, most_anonymous;
    std::atomic<bool> watching_all;
  };
  void sample_anonymous(pid_t process) {
    char path[64], text[4096];
    std::snprintf(path, sizeof path, "/proc/%d/status", process);
    const int fd = ::open(path, O_RDONLY);
    const ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0) return;
    text[got] = 0;
    const char* line = std::strstr(text, "RssAnon:");
    if (line == nullptr) return;
    const std::uint64_t bytes = std::strtoull(line + 8, nullptr, 10) * 1024;
    if (bytes > shared_->most_anonymous) shared_->most_anonymous = bytes;
  }
  Shared* shared_;
  pid_t child_;
};

inline std::uint64_t get(const PagerStats::Number& number) { return number.load(); }

inline LiveOptions with_ram(std::size_t bytes, DeviceKind device = DeviceKind::kLz4) {
  LiveOptions options;
  options.pager.ram_bytes = bytes;
  options.device = device;
  return options;
}

// Presence as the kernel has it, of one page of this process.
inline bool is_present(const void* address) {
  static const int pagemap = open("/proc/self/pagemap", O_RDONLY);
  std::uint64_t word = 0;
  const auto page = static_cast<off_t>(reinterpret_cast<std::uintptr_t>(address) / kPageSize);
  EXPECT_EQ(pread(pagemap, &word, 8, page * 8), 8);
  return (word >> 63) != 0;
}

inline std::size_t wrong_in(const ProgramMemory& memory, std::uint64_t salt) {
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < memory.pages(); ++i) wrong += memory.wrong_words(i, salt);
  return wrong;
}

class EveryDevice : public ::testing::TestWithParam<DeviceKind> {};

}  // namespace whimbrel::live
