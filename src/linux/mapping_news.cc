#include "linux/mapping_news.h"

#include <fcntl.h>
#include <linux/perf_event.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "base/syscall.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

// Pass after pass over the list of threads, until it holds nobody new: those who come later are inherited.
constexpr int kMostPasses = 8;

Result<long> perf_event(int thread, int processor, int output) noexcept {
  perf_event_attr attr;
  std::memset(&attr, 0, sizeof attr);
  attr.type = PERF_TYPE_SOFTWARE;
  attr.size = sizeof attr;
  attr.config = PERF_COUNT_SW_DUMMY;
  attr.mmap = 1;
  attr.mmap_data = 1;
  attr.inherit = 1;
  attr.inherit_thread = 1;  // threads only: a forked child is a process of its own
  attr.exclude_kernel = 1;
  attr.exclude_hv = 1;
  attr.watermark = 1;
  attr.wakeup_watermark = 1;
  const unsigned long flags = PERF_FLAG_FD_CLOEXEC | (output >= 0 ? PERF_FLAG_FD_OUTPUT | PERF_FLAG_FD_NO_GROUP : 0);
  return sys::checked(
      sys::call(SYS_perf_event_open, sys::arg(&attr), thread, processor, output, static_cast<long>(flags)),
      "perf_event_open");
}

// Processors are numbered without holes on all but exotic machines; a number that does not exist is refused by the
// kernel.
std::size_t count_processors() noexcept {
  char text[128];
  const Result<std::size_t> n = sys::read_text("/sys/devices/system/cpu/online", text, sizeof text);
  if (!n) return 0;
  std::size_t last = 0, number = 0;
  for (std::size_t i = 0; i < *n; ++i) {
    if (text[i] < '0' || '9' < text[i])
      number = 0;
    else
      number = number * 10 + static_cast<std::size_t>(text[i] - '0');
    last = std::max(last, number);
  }
  return last + 1;
}

struct RecordHead {
  perf_event_header header;
  std::uint32_t process, thread;
  std::uint64_t address, length;
};

}  // namespace

Result<void> MappingNews::open(Caller caller) noexcept {
  if (epoll_ >= 0) return {};
  processors_ = count_processors();
  if (processors_ == 0 || processors_ > kMostProcessors) return fail(Errc::kNotSupported, 0, "processors");
  const Result<long> epoll = sys::checked(sys::call(SYS_epoll_create1, EPOLL_CLOEXEC), "epoll_create1");
  if (!epoll) return std::unexpected(epoll.error());
  epoll_ = static_cast<int>(*epoll);
  const Result<void> opened = open_all_threads(caller == Caller::kLeftOut ? sys::gettid() : -1);
  if (!opened) close();
  return opened;
}

Result<void> MappingNews::open_all_threads(int but) noexcept {
  const Result<int> list = sys::open("/proc/self/task", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (!list) return std::unexpected(list.error());
  Result<void> result{};
  bool fresh = true;
  for (int pass = 0; pass < kMostPasses && fresh && result; ++pass) {
    fresh = false;
    (void)sys::call(SYS_lseek, *list, 0, SEEK_SET);
    alignas(8) char entries[2048];
    for (;;) {
      const long n = sys::call(SYS_getdents64, *list, sys::arg(entries), sizeof entries);
      if (n <= 0 || !result) break;
      for (long at = 0; at < n && result;) {
        std::uint16_t length = 0;
        std::memcpy(&length, entries + at + 16, sizeof length);  // linux_dirent64: ino, off, reclen, type, name
        int thread = 0;
        for (const char* c = entries + at + 19; '0' <= *c && *c <= '9'; ++c) thread = thread * 10 + (*c - '0');
        at += length;
        if (thread == 0 || thread == but || knows(thread)) continue;
        fresh = true;
        result = open_thread(thread);
      }
    }
  }
  sys::close(*list);
  if (result && event_count_ == 0) return fail(Errc::kNotSupported, 0, "no thread");
  return result;
}

bool MappingNews::knows(int thread) const noexcept {
  return std::find(threads_.begin(), threads_.begin() + thread_count_, thread) != threads_.begin() + thread_count_;
}

Result<void> MappingNews::open_thread(int thread) noexcept {
  for (std::size_t cpu = 0; cpu < processors_; ++cpu) {
    if (event_count_ == events_.size() || thread_count_ == threads_.size())
      return fail(Errc::kNotSupported, 0, "threads");
    Ring& ring = rings_[cpu];
    const Result<long> event = perf_event(thread, static_cast<int>(cpu), ring.event);
    if (!event && event.error().sys == ESRCH) return {};  // ended meanwhile
    if (!event && event.error().sys == ENODEV) continue;  // no such processor, or switched off
    if (!event) return std::unexpected(event.error());
    events_[event_count_++] = static_cast<int>(*event);
    if (ring.event >= 0) continue;
    if (const Result<void> made = make_ring(ring, static_cast<int>(*event)); !made) return made;
  }
  threads_[thread_count_++] = thread;
  return {};
}

Result<void> MappingNews::make_ring(Ring& ring, int event) noexcept {
  const long raw = sys::call(SYS_mmap, 0, kPageSize + kDataBytes, PROT_READ | PROT_WRITE, MAP_SHARED, event, 0);
  const Result<long> pages = sys::checked(raw, "mmap of a perf ring");
  if (!pages) return std::unexpected(pages.error());
  ring.pages = reinterpret_cast<std::byte*>(*pages);
  ring.event = event;
  epoll_event wanted{};
  wanted.events = EPOLLIN;
  const Result<long> added =
      sys::checked(sys::call(SYS_epoll_ctl, epoll_, EPOLL_CTL_ADD, event, sys::arg(&wanted)), "epoll_ctl");
  if (!added) return std::unexpected(added.error());
  return {};
}

void MappingNews::close() noexcept {
  for (Ring& ring : rings_) {
    if (ring.pages != nullptr) sys::munmap(ring.pages, kPageSize + kDataBytes);
  }
  for (std::size_t i = 0; i < event_count_; ++i) sys::close(events_[i]);
  if (epoll_ >= 0) sys::close(epoll_);
  forget();
}

void MappingNews::forget() noexcept {
  rings_ = {};
  event_count_ = thread_count_ = processors_ = 0;
  epoll_ = -1;
}

bool MappingNews::any() const noexcept {
  for (std::size_t cpu = 0; cpu < processors_; ++cpu) {
    if (rings_[cpu].pages == nullptr) continue;
    auto* page = reinterpret_cast<perf_event_mmap_page*>(rings_[cpu].pages);
    if (std::atomic_ref(page->data_head).load(std::memory_order_relaxed) != page->data_tail) return true;
  }
  return false;
}

std::size_t MappingNews::take(std::span<PageRange> out, bool* incomplete) noexcept {
  std::size_t n = 0;
  for (std::size_t cpu = 0; cpu < processors_; ++cpu) {
    if (rings_[cpu].pages != nullptr) n += drain(rings_[cpu], out.subspan(n), incomplete);
  }
  return n;
}

std::size_t MappingNews::drain(Ring& ring, std::span<PageRange> out, bool* incomplete) noexcept {
  auto* page = reinterpret_cast<perf_event_mmap_page*>(ring.pages);
  const std::byte* data = ring.pages + kPageSize;
  const std::uint64_t head = std::atomic_ref(page->data_head).load(std::memory_order_acquire);
  std::uint64_t tail = page->data_tail;
  std::size_t n = 0;
  while (tail < head) {
    RecordHead record;
    auto* to = reinterpret_cast<std::byte*>(&record);
    for (std::size_t i = 0; i < sizeof record; ++i) to[i] = data[(tail + i) % kDataBytes];  // may wrap round
    if (record.header.size < sizeof record.header) {  // not to be read on from here: start again behind it all
      *incomplete = true;
      tail = head;
      break;
    }
    const bool told = record.header.type == PERF_RECORD_MMAP;
    if (told && n == out.size()) *incomplete = true;
    if (told && n < out.size()) {
      out[n++] = PageRange{PageIndex(record.address >> kPageShift), PageCount(record.length >> kPageShift)};
    }
    if (record.header.type == PERF_RECORD_LOST) *incomplete = true;
    tail += record.header.size;
  }
  std::atomic_ref(page->data_tail).store(tail, std::memory_order_release);
  return n;
}

}  // namespace whimbrel
