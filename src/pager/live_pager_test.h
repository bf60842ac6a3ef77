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
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <new>

#include "devices/compressed_device.h"
#include "devices/ram_device.h"
#include "linux/clock.h"
#include "linux/raw_engine_threads.h"
#include "linux/reservation.h"
#include "linux/userfault_mmu.h"
#include "pager/pager.h"

namespace whimbrel::live {

inline constexpr std::size_t kMiB = std::size_t{1} << 20;

enum class DeviceKind { kRam, kLz4, kZstd };

class LivePager {
 public:
  // In static memory: engine threads use it.
  static LivePager& instance() {
    alignas(LivePager) static std::byte room[sizeof(LivePager)];
    return *reinterpret_cast<LivePager*>(room);
  }
  static LivePager& start(PagerConfig config, DeviceKind device = DeviceKind::kRam, AddressSpace::Config space = {}) {
    return (::new (&instance()) LivePager)->open(config, device, space);
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
    UserfaultMmu::destroy(mmu_);
    this->~LivePager();
  }

  Pager& pager() { return *pager_; }
  PagerStats& stats() { return pager_->stats(); }
  Device& device() { return *device_; }

  // Things that only engine threads may do, done by the background thread.
  enum class Command { kNone, kBringAllHome, kEvictRange, kBringHome, kPin, kUnpin, kRecount };
  PageCount command(Command what, PageRange range = {}) {
    range_ = range;
    command_ = what;
    while (command_ != Command::kNone) {
      pager_->wake_event().advance();
      usleep(200);
    }
    return result_;
  }

 private:
  LivePager() = default;
  ~LivePager() = default;

  LivePager& open(PagerConfig config, DeviceKind kind, AddressSpace::Config space_config) {
    EXPECT_TRUE(tables_.open({}).has_value());
    EXPECT_TRUE(store_.open({}).has_value());
    UserfaultMmu::Options options;
    options.visibility = Visibility::kShared;
    mmu_ = UserfaultMmu::create(tables_, options).value();
    space_ = AddressSpace::create(*mmu_, tables_, clock_, space_config).value();
    if (kind == DeviceKind::kRam) {
      RamDevice::Options ram;
      ram.unit_pages = 16;
      device_ = RamDevice::create(store_, ram).value();
    } else {
      CompressedDevice::Options compressed;
      compressed.codec = kind == DeviceKind::kLz4 ? CodecId::kLz4 : CodecId::kZstd;
      device_ = CompressedDevice::create(store_, compressed).value();
    }
    pager_ = Pager::create(*space_, *device_, config).value();
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
    EngineThreadOptions thread_options;
    thread_options.keep = mmu_->descriptors().span();
    threads_ = make_from<RawEngineThreads>(tables_, tables_, thread_options);
    fault_ = threads_->start_first(&LivePager::serve, this).value();
    background_ = threads_->start_first(&LivePager::work, this).value();
    return *this;
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
      case Command::kUnpin:
        pager_->unpin(range_);
        break;
      case Command::kRecount:
        pager_->recount();
        break;
    }
    command_ = Command::kNone;
  }

  SystemClock clock_;
  Reservation tables_;
  Reservation store_;
  UserfaultMmu* mmu_ = nullptr;
  AddressSpace* space_ = nullptr;
  Device* device_ = nullptr;
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
  explicit ProgramMemory(std::size_t bytes, bool huge = false) : bytes_(bytes) {
    raw_ = static_cast<char*>(mmap(nullptr, whole(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    at_ = reinterpret_cast<std::uint64_t*>((reinterpret_cast<std::uintptr_t>(raw_) + 2 * kHugeSize - 1) & ~(kHugeSize - 1));
    mmap(at_, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    madvise(at_, bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
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
  static std::uint64_t expected(std::size_t i, std::size_t w, std::uint64_t salt) {
    // Half of each page compresses.
    return w % 2 == 0 ? i + salt : (i * 0x9e3779b97f4a7c15ull + w) ^ (salt * 0xbf58476d1ce4e5b9ull);
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
    shared_ = static_cast<Shared*>(
        mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
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
  [[nodiscard]] std::uint64_t samples() const { return shared_->samples; }

 private:
  struct Shared {
    std::atomic<std::uint64_t> first, count, most, samples;
  };
  Shared* shared_;
  pid_t child_;
};

}  // namespace whimbrel::live
