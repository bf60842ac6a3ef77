// Starting and stopping the engine, its threads, registered ranges.
#include <signal.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "base/check.h"
#include "capi/capi.h"
#include "linux/sys.h"
#include "migrate/exclusive.h"

namespace whimbrel::capi {
namespace {

std::atomic<mm_struct*> g_current{nullptr};
Mutex g_start_mutex;
std::atomic<bool> g_fork_handlers{false};

constexpr PageRange kEverything{PageIndex(0), PageCount(std::uint64_t{1} << (kUserAddressBits - kPageShift))};

}  // namespace

mm_struct* current() noexcept { return g_current.load(std::memory_order_acquire); }
void set_current(mm_struct* mm) noexcept { g_current.store(mm, std::memory_order_release); }
mm_struct& running() noexcept {
  mm_struct* mm = current();
  CHECK(mm != nullptr, "a page or a page map is used without an engine: whimbrel_start() comes first");
  return *mm;
}

}  // namespace whimbrel::capi

using namespace whimbrel;
using capi::complain;

// ---- life --------------------------------------------------------------------------------------------------------------

Result<mm_struct*> mm_struct::create(const whimbrel_options& options) noexcept {
  // Pages of its own: engine threads touch it, so it must not be on a heap that may be registered.
  const Result<void*> memory = sys::mmap(nullptr, sizeof(mm_struct), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (!memory) return std::unexpected(memory.error());
  auto* mm = ::new (*memory) mm_struct();
  Result<void> done = mm->open(options);
  if (done) done = mm->start_threads(options.threads == 0 ? 2 : options.threads);
  if (done) return mm;
  destroy(mm);
  return std::unexpected(done.error());
}

Result<void> mm_struct::open(const whimbrel_options& options) noexcept {
  if (const Result<void> opened = source_.open({.bytes = std::uint64_t{16} << 30}); !opened) return opened;
  UserfaultMmu::Options mmu_options;
  mmu_options.visibility = Visibility::kShared;
  mmu_options.request.write_protect = false;
  mmu_options.allow_user_mode_only = false;  // system calls of the program must find pages that are away (CF-01)
  const Result<UserfaultMmu*> mmu = UserfaultMmu::create(source_, mmu_options);
  if (!mmu) return std::unexpected(mmu.error());
  mmu_ = *mmu;
  AddressSpace::Config config;
  if (options.staging_bytes != 0) config.staging = PageCount::from_bytes_rounded_up(options.staging_bytes);
  if (options.landing_bytes != 0) config.landing = PageCount::from_bytes_rounded_up(options.landing_bytes);
  if (options.huge_bytes != 0) {
    const std::uint64_t units = (options.huge_bytes + kHugeSize - 1) / kHugeSize;
    config.huge = PageCount(units * kPagesPerHuge);
  }
  config.break_sharing = true;  // pages shared by a fork move once this process has its own copy (UA-06)
  const Result<AddressSpace*> space = AddressSpace::create(*mmu_, source_, clock_, config);
  if (!space) return std::unexpected(space.error());
  space_ = *space;
  space_->add_observer(&notifiers_);
  service_ = make_from<FaultService>(source_, *space_, this, this);
  return service_ != nullptr ? Result<void>{} : fail(Errc::kNoMemory, 0, "fault service");
}

void mm_struct::destroy(mm_struct* mm) noexcept {
  mm->stop_threads();
  destroy_from(mm->source_, mm->service_);
  AddressSpace::destroy(mm->space_);
  if (mm->mmu_ != nullptr) UserfaultMmu::destroy(mm->mmu_);
  mm->~mm_struct();
  sys::munmap(mm, sizeof(mm_struct));
}

// ---- threads -------------------------------------------------------------------------------------------------------------

Result<void> mm_struct::start_threads(unsigned count) noexcept {
  Result<void> done = start_thread(fault_thread);
  for (unsigned i = 0; done && i < count; ++i) done = start_thread(service_thread);
  return done;
}

Result<void> mm_struct::start_thread(void* (*body)(void*)) noexcept {
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  const int error = pthread_create(&threads_[thread_count_], nullptr, body, this);
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  if (error != 0) return fail(Errc::kNoMemory, error, "engine thread");
  ++thread_count_;
  return {};
}

void mm_struct::stop_threads() noexcept {
  stopping_.store(true, std::memory_order_release);
  if (thread_count_ != 0) mmu_->interrupt();
  queued_.advance();
  for (std::size_t i = 0; i < thread_count_; ++i) pthread_join(threads_[i], nullptr);
  thread_count_ = 0;
}

void* mm_struct::fault_thread(void* self) noexcept {
  auto* mm = static_cast<mm_struct*>(self);
  while (!mm->stopping_.load(std::memory_order_acquire)) {
    (void)mm->mmu_->wait_for_message(-1);
    (void)mm->service_->run_once();
  }
  return nullptr;
}

void* mm_struct::service_thread(void* self) noexcept {
  auto* mm = static_cast<mm_struct*>(self);
  for (;;) {
    const std::uint32_t seen = mm->queued_.value();
    PendingFault fault;
    while (mm->pop(&fault)) mm->service_->serve(fault, true);
    if (mm->stopping_.load(std::memory_order_acquire)) return nullptr;
    mm->queued_.wait(seen);
  }
}

bool mm_struct::push(const PendingFault& fault) noexcept {
  {
    MutexLock hold(queue_mutex_);
    if (queue_count_ == kQueue) return false;
    queue_[(queue_head_ + queue_count_) % kQueue] = fault;
    ++queue_count_;
  }
  queued_.advance();
  return true;
}

bool mm_struct::pop(PendingFault* out) noexcept {
  MutexLock hold(queue_mutex_);
  if (queue_count_ == 0) return false;
  *out = queue_[queue_head_];
  queue_head_ = (queue_head_ + 1) % kQueue;
  --queue_count_;
  return true;
}

// ---- registered ranges ---------------------------------------------------------------------------------------------------

Result<void> mm_struct::add_range(PageRange range) noexcept {
  MutexLock hold(mutex_);
  PageRange* room = nullptr;
  for (PageRange& known : ranges_) {
    if (known.empty()) room = room == nullptr ? &known : room;
    else if (known.overlaps(range)) return fail(Errc::kInvalid, 0, "it overlaps a registered range");
  }
  if (room == nullptr) return fail(Errc::kNoMemory, 0, "too many registered ranges");
  *room = range;
  return {};
}

bool mm_struct::remove_range(PageRange range) noexcept {
  MutexLock hold(mutex_);
  const auto known = std::find(ranges_.begin(), ranges_.end(), range);
  if (known == ranges_.end()) return false;
  *known = {};
  return true;
}

PageRange mm_struct::registered(PageRange range) noexcept {
  MutexLock hold(mutex_);
  for (const PageRange& known : ranges_) {
    if (known.contains(range)) return known;
  }
  return {};
}

bool mm_struct::touches_registered(PageRange range) noexcept {
  MutexLock hold(mutex_);
  return std::any_of(ranges_.begin(), ranges_.end(), [&](const PageRange& known) { return known.overlaps(range); });
}

void mm_struct::unwatch(PageRange range) noexcept {
  for (PageIndex at = range.first; at < range.end();) {
    const Result<Mapping> mapping = mmu_->mapping_at_or_above(at);
    if (!mapping || mapping->range.first >= range.end()) return;
    at = mapping->range.end();
    if (mapping->is_private_anonymous()) (void)mmu_->unwatch(mapping->range.intersect(range));
  }
}

long mm_struct::bring_home(PageRange range) noexcept {
  long touches = 0;
  for (bool again = true; again;) {  // until a pass finds nothing away
    again = false;
    for (PageIndex at = range.first; at < range.end(); ++at) {
      PageEntry entry;
      {
        MutexLock hold(space_->mutex());
        space_->pump_locked();
        at = space_->table().next_used(at, range.end());
        if (at < range.end()) entry = space_->table().get(at);
      }
      if (at >= range.end()) break;
      const PageState state = entry.state();
      if (state == PageState::kCoherent || state == PageState::kPoisoned) continue;  // these stay in forked children
      again = true;
      if (is_migrating(state)) {
        clock_.sleep_ns(50'000);  // somebody else's; he settles it
      } else if (state == PageState::kExclusive) {
        if (!revoke_exclusive(*space_, at)) clock_.sleep_ns(50'000);
      } else {
        ++touches;
        const PageRange one{at, PageCount(1)};
        const Result<Mapping> mapping = mmu_->mapping_at_or_above(at);
        if (mapping && mapping->range.contains(at) && !mapping->has(Mapping::kReadable)) {
          service_->serve({at, at.address(), false, false, 0}, true);  // a touch would not get as far as a fault
        } else if (const Result<void> in = mmu_->populate(one, false); !in && in.error().code != Errc::kAgain) {
          if (space_->entry(at).state() == PageState::kDevice) {
            return complain(EIO, "a driver does not bring a page home", "see what its migrate_to_ram returned");
          }
        }
      }
    }
  }
  return touches;
}

// ---- the interface -------------------------------------------------------------------------------------------------------

namespace {

void before_fork() {
  if (mm_struct* mm = capi::current(); mm != nullptr) mm->prepare_fork();
}
void after_fork_in_parent() {
  if (mm_struct* mm = capi::current(); mm != nullptr) mm->after_fork_in_parent();
}
void after_fork_in_child() {
  capi::g_start_mutex.reset_after_fork();
  if (mm_struct* mm = capi::current(); mm != nullptr) mm->after_fork_in_child();
}

// The range of a call, or an empty one when it is not page aligned.
PageRange pages_of(unsigned long start, unsigned long length) {
  if (start % kPageSize != 0 || length % kPageSize != 0 || start + length < start) return {};
  return {PageIndex(start >> kPageShift), PageCount(length >> kPageShift)};
}

int not_running(const char* what) { return complain(ENODEV, what, "whimbrel_start()"); }

}  // namespace

int whimbrel_start(const whimbrel_options* given, mm_struct** out) {
  if (out == nullptr) return complain(EINVAL, "whimbrel_start: nowhere to put the address space");
  whimbrel_options options{};
  if (given != nullptr) {
    if (given->struct_size < offsetof(whimbrel_options, staging_bytes)) {
      return complain(EINVAL, "whimbrel_start: options.struct_size", "set it to sizeof(struct whimbrel_options)");
    }
    std::memcpy(&options, given, std::min(sizeof options, given->struct_size));
  }
  if (options.flags != 0 || options.threads > mm_struct::kMostThreads) {
    return complain(EINVAL, "whimbrel_start: options.flags must be 0, options.threads at most 16");
  }
  MutexLock hold(capi::g_start_mutex);
  if (capi::current() != nullptr) {
    return complain(EBUSY, "whimbrel_start: the engine of this process runs already", "use whimbrel_current_mm()");
  }
  if (!capi::g_fork_handlers.exchange(true)) {
    if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
      capi::g_fork_handlers.store(false);
      return complain(ENOMEM, "whimbrel_start: no room for fork handlers");
    }
  }
  const Result<mm_struct*> mm = mm_struct::create(options);
  if (!mm) return complain(mm.error(), "whimbrel_start", "`whimbrel doctor` says what this machine allows");
  *out = *mm;
  capi::set_current(*mm);
  return 0;
}

int whimbrel_stop(mm_struct* mm) {
  if (mm == nullptr || mm != capi::current()) return not_running("whimbrel_stop: no such address space");
  MutexLock hold(capi::g_start_mutex);
  if (mm->page_maps.load() != 0) return complain(EBUSY, "whimbrel_stop: page maps are left", "memunmap_pages()");
  if (mm->subscriptions.load() != 0) {
    return complain(EBUSY, "whimbrel_stop: notifiers are left", "mmu_interval_notifier_remove()");
  }
  if (mm->flights().count() != 0) return complain(EBUSY, "whimbrel_stop: a migration is in flight", "finalize it");
  if (const long home = mm->bring_home(capi::kEverything); home < 0) return static_cast<int>(home);
  capi::set_current(nullptr);
  mm_struct::destroy(mm);
  return 0;
}

mm_struct* whimbrel_current_mm() { return capi::current(); }

int whimbrel_register_range(mm_struct* mm, unsigned long start, unsigned long length) {
  if (mm == nullptr || mm != capi::current()) return not_running("whimbrel_register_range: no such address space");
  const PageRange range = pages_of(start, length);
  if (range.empty()) return complain(EINVAL, "whimbrel_register_range: not page aligned, or empty");
  const Result<void> added = mm->add_range(range);
  return added ? 0 : complain(added.error(), "whimbrel_register_range");
}

int whimbrel_unregister_range(mm_struct* mm, unsigned long start, unsigned long length) {
  if (mm == nullptr || mm != capi::current()) return not_running("whimbrel_unregister_range: no such address space");
  const PageRange range = pages_of(start, length);
  if (range.empty() || !mm->remove_range(range)) {
    return complain(ENOENT, "whimbrel_unregister_range: not registered as such", "give exactly a registered range");
  }
  if (const long home = mm->bring_home(range); home < 0) {
    (void)mm->add_range(range);
    return static_cast<int>(home);
  }
  mm->unwatch(range);
  return 0;
}

long whimbrel_bring_home(mm_struct* mm, unsigned long start, unsigned long length) {
  if (mm == nullptr || mm != capi::current()) return not_running("whimbrel_bring_home: no such address space");
  const PageRange range = pages_of(start, length);
  if (range.empty()) return complain(EINVAL, "whimbrel_bring_home: not page aligned, or empty");
  return mm->bring_home(range);
}

int whimbrel_find_vma(mm_struct* mm, unsigned long addr, vm_area_struct* vma) {
  if (mm == nullptr || mm != capi::current()) return not_running("whimbrel_find_vma: no such address space");
  const PageIndex page = PageIndex::of(VirtualAddress(addr));
  const Result<Mapping> mapping = mm->space().mmu().mapping_at_or_above(page);
  if (!mapping || !mapping->range.contains(page)) return complain(ENOENT, "whimbrel_find_vma: nothing is mapped there");
  vma->vm_start = mapping->range.first.address().raw();
  vma->vm_end = mapping->range.end().address().raw();
  vma->vm_flags = (mapping->has(Mapping::kReadable) ? VM_READ : 0) | (mapping->has(Mapping::kWritable) ? VM_WRITE : 0) |
                  (mapping->has(Mapping::kExecutable) ? VM_EXEC : 0) | (mapping->has(Mapping::kShared) ? VM_SHARED : 0) |
                  (mapping->is_private_anonymous() ? WHIMBREL_VM_ANON : 0);
  vma->vm_mm = mm;
  return 0;
}

int whimbrel_get_counters(mm_struct* mm, whimbrel_counters* counters) {
  if (mm == nullptr || mm != capi::current()) return not_running("whimbrel_get_counters: no such address space");
  if (counters == nullptr || counters->struct_size < sizeof(std::size_t)) {
    return complain(EINVAL, "whimbrel_get_counters: struct_size", "set it to sizeof(struct whimbrel_counters)");
  }
  const SpaceStats& stats = mm->space().stats();
  const whimbrel_counters now{counters->struct_size, stats.collected, stats.moved,    stats.inserted,
                              stats.restored,        stats.dropped,   stats.remapped, stats.split,
                              stats.faults,          stats.waits,     stats.busy};
  std::memcpy(counters, &now, std::min(sizeof now, counters->struct_size));
  return 0;
}

unsigned int whimbrel_version() { return WHIMBREL_VERSION; }
