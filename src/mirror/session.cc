#include "mirror/session.h"

#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cstring>

#include "base/check.h"
#include "base/syscall.h"
#include "mirror/protection_lift.h"

namespace whimbrel::mirror {
namespace {

// In our own data, never away. The session is made once and never ends before the process does.
alignas(Session) std::byte g_memory[sizeof(Session)];
Mutex g_mutex;
std::atomic<Session*> g_session{nullptr};

Mutex g_protection;
std::atomic<bool> g_memory_was_locked{false};

constexpr std::uint64_t kPrivateChunks = 32;  // 8 GiB of device addresses a node

}  // namespace

Mutex& protection_mutex() noexcept { return g_protection; }
std::atomic<bool>& memory_was_locked() noexcept { return g_memory_was_locked; }

Session* Session::existing() noexcept { return g_session.load(std::memory_order_acquire); }
Session& Session::of(AddressSpace& space) noexcept {
  Session* session = existing();
  CHECK(session != nullptr && (session->space_ == nullptr || session->space_ == &space));
  return *session;
}

Result<Session*> Session::get() noexcept {
  if (Session* session = existing(); session != nullptr) return session;
  MutexLock hold(g_mutex);
  if (Session* session = existing(); session != nullptr) return session;
  auto* session = ::new (static_cast<void*>(g_memory)) Session();
  if (const Result<void> started = session->start(); !started) {
    session->~Session();
    return std::unexpected(started.error());
  }
  g_session.store(session, std::memory_order_release);
  return session;
}

// The library's own variables: the kernel may join the mapping behind them with one of the program.
void Session::exclude_own_data() noexcept {
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* given) {
        const auto own = reinterpret_cast<std::uint64_t>(&g_session);
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& segment = info->dlpi_phdr[i];
          const std::uint64_t from = info->dlpi_addr + segment.p_vaddr, to = from + segment.p_memsz;
          if (segment.p_type != PT_LOAD || own < from || own >= to) continue;
          static_cast<UserfaultMmu*>(given)->never_watch(PageRange::touching(VirtualAddress(from), VirtualAddress(to)));
        }
        return 0;
      },
      mmu_);
}

Result<void> Session::start() noexcept {
  if (const Result<void> opened = source_.open({.bytes = std::uint64_t{16} << 30}); !opened) return opened;
  UserfaultMmu::Options options;
  options.visibility = Visibility::kShared;
  const Result<UserfaultMmu*> mmu = UserfaultMmu::create(source_, options);
  if (!mmu) return std::unexpected(mmu.error());
  mmu_ = *mmu;
  exclude_own_data();
  AddressSpace::Config config;
  config.break_sharing = true;
  config.track_protection = mmu_->abilities().write_protect;
  config.landing = PageCount(4096);
  config.staging = PageCount(16384);
  config.huge = PageCount(64 * kPagesPerHuge);
  config.details_in_child = true;
  config.discard = &discarder_;
  const Result<Family*> family = Family::create();
  if (!family) return std::unexpected(family.error());
  family_ = *family;
  const Result<AddressSpace*> space = AddressSpace::create(*mmu_, source_, clock_, config);
  if (!space) return std::unexpected(space.error());
  space_ = *space;
  space_->add_observer(&notifiers_);
  space_->add_observer(this);
  for (int minor = 0; minor < kNodes; ++minor) {
    const Result<Node*> node = Node::create(*space_, minor, kPrivateChunks);
    if (!node) return std::unexpected(node.error());
    nodes_[static_cast<std::size_t>(minor)] = *node;
  }
  service_ = make_from<FaultService>(source_, *space_, this, nullptr);
  if (service_ == nullptr) return fail(Errc::kNoMemory, 0, "mirror session");
  return start_fault_thread();
}

bool Session::is_alone() const noexcept {
  struct stat status {};
  if (sys::call(SYS_stat, sys::arg("/proc/self/task"), sys::arg(&status)) != 0) return false;
  return status.st_nlink == 2 + 1 + threads_.load();
}

bool Session::owns_descriptor(int fd) const noexcept {
  if (file_copies_.owns_descriptor(fd)) return true;
  const Descriptors& fds = mmu_->descriptors();
  for (int which = 0; which < Descriptors::kCount; ++which) {
    if (fds[static_cast<Descriptors::Which>(which)] == fd) return true;
  }
  return false;
}

Result<void> Session::start_thread(void (*body)(void*), void* argument) noexcept {
  struct Start {
    void (*body)(void*);
    void* argument;
  };
  constexpr std::size_t kStack = std::size_t{512} << 10;
  auto* const start = make_from<Start>(source_, body, argument);
  void* const stack = source_.take(kStack);
  if (start == nullptr || stack == nullptr) return fail(Errc::kNoMemory, 0, "thread of the mirror devices");
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstack(&attributes, stack, kStack);
  pthread_t thread;
  const int error = pthread_create(&thread, &attributes, [](void* given) -> void* {
    const Start mine = *static_cast<Start*>(given);
    mine.body(mine.argument);
    return nullptr;
  }, start);
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  if (error == 0) threads_.fetch_add(1);
  return error == 0 ? Result<void>{} : fail(Errc::kNoMemory, error, "thread of the mirror devices");
}

Result<void> Session::start_fault_thread() noexcept { return start_thread(&Session::fault_thread, this); }

// A fork waits for nothing to be under way here. But libc's own fork may touch memory that is away, and that must be
// served: so the wait is short, and what is copied in the middle of a fault is put right in the child.
void Session::park() noexcept {
  constexpr int kSteps = 20;
  constexpr std::int64_t kStepNs = 5'000'000;
  parked_.store(true);
  park_changed_.advance();
  for (int step = 0; step < kSteps && park_wanted_.load(); ++step) {
    const std::uint32_t seen = park_changed_.value();
    if (park_wanted_.load()) park_changed_.wait(seen, kStepNs);
  }
  parked_.store(false);
}

void Session::fault_thread(void* session) noexcept {
  auto* self = static_cast<Session*>(session);
  for (;;) {
    (void)self->mmu_->wait_for_message(-1);
    if (self->park_wanted_.load()) self->park();
    (void)self->service_->run_once();
  }
}

Result<Mirror*> Session::open(int minor) noexcept {
  OpenFlags* const flags = family_->take_flags();
  if (flags == nullptr) return fail(Errc::kNoMemory, 0, "too many opens of mirror devices");
  auto* mirror = make_from<Mirror>(source_, *this, node(minor), *flags);
  if (mirror == nullptr) {
    Family::give_flags(flags);
    return fail(Errc::kNoMemory, 0, "mirror open");
  }
  constexpr std::uint64_t kEverything = std::uint64_t{1} << 63;
  if (const Result<void> subscribed = notifiers_.insert(*mirror, VirtualAddress(), kEverything); !subscribed) {
    destroy_from(source_, mirror);
    Family::give_flags(flags);
    return std::unexpected(subscribed.error());
  }
  MutexLock hold(mutex_);
  for (Mirror*& slot : opens_) {
    if (slot != nullptr) continue;
    slot = mirror;
    return mirror;
  }
  mutex_.unlock();
  notifiers_.remove(*mirror);
  destroy_from(source_, mirror);
  Family::give_flags(flags);
  mutex_.lock();
  return fail(Errc::kNoMemory, 0, "too many opens of mirror devices");
}

void Session::close(Mirror* mirror) noexcept {
  follow_family();
  notifiers_.remove(*mirror);
  mirror->node().evict(false);
  OpenFlags& flags = mirror->flags();
  const int minor = mirror->node().minor();
  mirror->node().forget(&flags);
  {
    MutexLock hold(mutex_);
    for (Mirror*& slot : opens_) {
      if (slot == mirror) slot = nullptr;
    }
  }
  destroy_from(source_, mirror);
  Family::give_flags(&flags);
  note_evicted(minor);
}

void Session::note_evicted(int minor) noexcept {
  // In every process of the family (CL-01): the others do it at their next command.
  MutexLock hold(following_);
  evictions_seen_[static_cast<std::size_t>(minor)] = family_->evictions(minor).fetch_add(1) + 1;
}

void Session::forget_everywhere(Node& node, PageRange range) noexcept {
  MutexLock hold(mutex_);
  for (Mirror* mirror : opens_) {
    if (mirror != nullptr && &mirror->node() == &node) mirror->forget_range(range);
  }
}

void Session::forget_elsewhere(const Mirror& but, PageRange range) noexcept {
  MutexLock hold(mutex_);
  for (Mirror* mirror : opens_) {
    if (mirror != nullptr && mirror != &but && &mirror->node() == &const_cast<Mirror&>(but).node()) {
      mirror->forget_range(range);
    }
  }
}

}  // namespace whimbrel::mirror
