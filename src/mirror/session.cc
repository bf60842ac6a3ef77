#include "mirror/session.h"

#include <pthread.h>
#include <signal.h>

#include <cstring>

#include "base/check.h"
#include "migrate/exclusive.h"

namespace whimbrel::mirror {
namespace {

// In our own data, never away. The session is made once and never ends before the process does.
alignas(Session) std::byte g_memory[sizeof(Session)];
Mutex g_mutex;
std::atomic<Session*> g_session{nullptr};

alignas(kPageSize) constexpr std::byte kZeroPage[kPageSize]{};

constexpr std::uint64_t kPrivateChunks = 32;  // 8 GiB of device addresses a node

}  // namespace

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

Result<void> Session::start() noexcept {
  if (const Result<void> opened = source_.open({.bytes = std::uint64_t{16} << 30}); !opened) return opened;
  UserfaultMmu::Options options;
  options.visibility = Visibility::kShared;
  const Result<UserfaultMmu*> mmu = UserfaultMmu::create(source_, options);
  if (!mmu) return std::unexpected(mmu.error());
  mmu_ = *mmu;
  AddressSpace::Config config;
  config.break_sharing = true;
  config.track_protection = mmu_->abilities().write_protect;
  config.landing = PageCount(4096);
  const Result<AddressSpace*> space = AddressSpace::create(*mmu_, source_, clock_, config);
  if (!space) return std::unexpected(space.error());
  space_ = *space;
  space_->add_observer(&notifiers_);
  for (int minor = 0; minor < kNodes; ++minor) {
    const Result<Node*> node = Node::create(*space_, minor, kPrivateChunks);
    if (!node) return std::unexpected(node.error());
    nodes_[static_cast<std::size_t>(minor)] = *node;
  }
  service_ = make_from<FaultService>(source_, *space_, this, nullptr);
  if (service_ == nullptr) return fail(Errc::kNoMemory, 0, "mirror session");
  return start_thread();
}

Result<void> Session::start_thread() noexcept {
  sigset_t all, old;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  const int error = pthread_create(&thread, &attributes, [](void* session) -> void* {
    thread_body(session);
    return nullptr;
  }, this);
  pthread_attr_destroy(&attributes);
  pthread_sigmask(SIG_SETMASK, &old, nullptr);
  return error == 0 ? Result<void>{} : fail(Errc::kNoMemory, error, "fault thread");
}

void Session::thread_body(void* session) noexcept {
  auto* self = static_cast<Session*>(session);
  for (;;) {
    (void)self->mmu_->wait_for_message(-1);
    (void)self->service_->run_once();
  }
}

Result<Mirror*> Session::open(int minor) noexcept {
  auto* mirror = make_from<Mirror>(source_, *this, node(minor));
  if (mirror == nullptr) return fail(Errc::kNoMemory, 0, "mirror open");
  constexpr std::uint64_t kEverything = std::uint64_t{1} << 63;
  if (const Result<void> subscribed = notifiers_.insert(*mirror, VirtualAddress(), kEverything); !subscribed) {
    destroy_from(source_, mirror);
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
  mutex_.lock();
  return fail(Errc::kNoMemory, 0, "too many opens of mirror devices");
}

void Session::close(Mirror* mirror) noexcept {
  notifiers_.remove(*mirror);
  mirror->node().evict(false);
  mirror->node().forget(mirror);
  {
    MutexLock hold(mutex_);
    for (Mirror*& slot : opens_) {
      if (slot == mirror) slot = nullptr;
    }
  }
  destroy_from(source_, mirror);
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

void Session::watch(PageRange range) noexcept {
  for (PageIndex at = range.first; at < range.end();) {
    const Result<Mapping> mapping = space_->mmu().mapping_at_or_above(at);
    if (!mapping || mapping->range.first >= range.end()) break;
    at = mapping->range.end();
    if (mapping->is_private_anonymous()) (void)space_->mmu().watch(mapping->range.intersect(range));
  }
  MutexLock hold(mutex_);
  for (const PageRange& known : watched_) {
    if (known.contains(range)) return;
  }
  watched_[watched_next_] = range;
  watched_next_ = (watched_next_ + 1) % watched_.size();
}

void Session::add_node_mapping(PageRange range) noexcept {
  MutexLock hold(mutex_);
  node_mappings_[node_mapping_next_] = range;
  node_mapping_next_ = (node_mapping_next_ + 1) % node_mappings_.size();
}

bool Session::is_node_mapping(PageIndex page) noexcept {
  {
    MutexLock hold(mutex_);
    bool known = false;
    for (const PageRange& range : node_mappings_) known = known || range.contains(page);
    if (!known) return false;
  }
  // The range may have been unmapped and used otherwise since: ours are private mappings of a file.
  const Result<Mapping> mapping = space_->mmu().mapping_at_or_above(page);
  return mapping && mapping->range.contains(page) && mapping->has(Mapping::kFileBacked) && !mapping->has(Mapping::kShared);
}

bool Session::wants_huge(AddressSpace& space, PageIndex page) noexcept {
  const Result<Mapping> detailed = space.mmu().detailed_mapping_at_or_above(page);
  return detailed && detailed->range.contains(page) && detailed->has(Mapping::kHugeAdvised);
}

bool Session::serve_hole(AddressSpace& space, const PendingFault& fault, const Mapping& mapping) noexcept {
  const PageRange unit{fault.page.huge_base(), PageCount(kPagesPerHuge)};
  MutexLock hold(space.mutex());
  if (!space.table().get(fault.page).is_ram()) return false;
  if (mapping.range.contains(unit) && space.table().next_used(unit.first, unit.end()) == unit.end()) {
    PageRun run[1];
    const Result<std::size_t> present = space.mmu().scan(unit, run, nullptr);
    // Whether huge pages are wanted only the slow query tells: asked once for each untouched unit.
    if (present && *present == 0 && wants_huge(space, fault.page) && install_huge_zeros_locked(space, unit, fault.write)) {
      return true;
    }
  }
  for (int tries = 0; tries < 100; ++tries) {
    const Progress filled = fault.write ? space.mmu().copy(fault.page, kZeroPage, PageCount(1), Wake::kYes)
                                        : space.mmu().zero(fault.page, PageCount(1), Wake::kYes);
    if (!filled.failed) return true;
    if (filled.error.code != Errc::kEventPending) break;
    space.pump_locked();
    if (!space.table().get(fault.page).is_ram()) break;
  }
  space.mmu().wake({fault.page, PageCount(1)});
  return true;
}

bool Session::serve_write_protect(AddressSpace& space, const PendingFault& fault) noexcept {
  const PageRange unit{fault.page.huge_base(), PageCount(kPagesPerHuge)};
  MutexLock hold(space.mutex());
  PageRun run[1];
  const Result<std::size_t> found = space.mmu().scan(unit, run, nullptr);
  const bool huge = found && *found == 1 && run[0].range == unit && (run[0].kind & PageRun::kHuge) != 0;
  // A huge page becomes writable whole.
  const PageRange range = huge ? unit : PageRange{fault.page, PageCount(1)};
  return space.mmu().write_protect(range, false, Wake::kYes).has_value();
}

bool Session::install_huge_zeros_locked(AddressSpace& space, PageRange unit, bool writable) noexcept {
  const Result<Pfn> frame = space.alloc_huge_frame();
  if (!frame) return false;
  *space.bytes(*frame) = std::byte{0};  // faults in a huge page of zeros
  const Progress moved = space.mmu().move(unit.first, frame->frame(), unit.count, Wake::kNo);
  // What a read brings in stands for the huge zero page: readable until the first write.
  if (!moved.failed && !writable && space.config().track_protection) {
    (void)space.mmu().write_protect(unit, true, Wake::kNo);
  }
  space.page(*frame)->unlock();
  space.put_page(*frame);
  if (moved.done.raw() == 0 && moved.failed) return false;
  space.mmu().wake(unit);
  return true;
}

// ---- fork ----------------------------------------------------------------------------------------------------------

void Session::before_fork() noexcept { revoke_all_exclusive(*space_); }

void Session::after_fork_in_parent() noexcept {
  space_->note_shared_by_fork();
  MutexLock hold(mutex_);
  for (Mirror* mirror : opens_) {
    // FK-01: one PROTECTION_PAGE bracket over each private mapping; nothing is told apart here.
    if (mirror != nullptr) mirror->forget_range(PageRange::between(PageIndex(), PageIndex(std::uint64_t{1} << 35)));
  }
}

void Session::after_fork_in_child() noexcept {
  source_.reset_after_fork();
  mmu_->reset_after_fork();
  mutex_.reset_after_fork();
  CHECK(mmu_->reopen_in_child().has_value(), "a forked child gets no userfaultfd: its device pages would read as zeros");
  for (Node* node : nodes_) node->reset_after_fork();
  // FK-01: the child has no subscriptions; the opens it inherited are the parent's.
  ::new (static_cast<void*>(&notifiers_)) NotifierRegistry();
  {
    MutexLock hold(mutex_);
    opens_ = {};
  }
  std::array<PageRange, 1024> watched;
  {
    MutexLock hold(mutex_);
    watched = watched_;
  }
  for (const PageRange& range : watched) {
    if (!range.empty()) watch(range);
  }
  CHECK(space_->recover_in_child() == 0, "memory on a device was touched in a forked child before it could be served");
  space_->note_shared_by_fork();
  CHECK(start_thread().has_value(), "no thread in a forked child");
}

}  // namespace whimbrel::mirror
