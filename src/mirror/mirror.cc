// Validation, READ, WRITE, SNAPSHOT, EXCLUSIVE and the device page table. Migration: mirror_migrate.cc.
#include "mirror/mirror.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "migrate/exclusive.h"
#include "mirror/bounce.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

constexpr std::uint64_t kRoundPages = 32;
constexpr PageRange kEverything{PageIndex(), PageCount(std::uint64_t{1} << (kUserAddressBits - kPageShift))};
// Ten times HMM_RANGE_DEFAULT_TIMEOUT: a round in which 32 pages come home one after the other takes that much longer here
// on a busy machine, and EBUSY is for views that never become stable.
constexpr std::int64_t kPatienceNs = 10'000'000'000;

// Bytes of the program itself, without dying of a page that has just been unmapped.
bool read_program(std::byte* to, PageIndex at, std::size_t bytes) {
  const iovec local{to, bytes}, remote{reinterpret_cast<void*>(at.address().raw()), bytes};
  return process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes);
}
bool write_program(const std::byte* from, PageIndex at, std::size_t bytes) {
  const iovec local{const_cast<std::byte*>(from), bytes}, remote{reinterpret_cast<void*>(at.address().raw()), bytes};
  return process_vm_writev(getpid(), &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes);
}

PageRange unit_of(PageIndex at) { return {at.huge_base(), PageCount(kPagesPerHuge)}; }

bool is_huge_ram(AddressSpace& space, PageIndex at) {
  PageRun run[1];
  const Result<std::size_t> found = space.mmu().scan({at, PageCount(1)}, run, nullptr);
  return found && *found == 1 && (run[0].kind & PageRun::kHuge) != 0;
}

std::uint64_t word_at(const char* path, std::uint64_t index) {
  const Result<int> file = sys::open(path, O_RDONLY | O_CLOEXEC);
  if (!file) return 0;
  std::uint64_t word = 0;
  const Result<std::size_t> got = sys::pread(*file, &word, sizeof word, index * sizeof word);
  sys::close(*file);
  return got && *got == sizeof word ? word : 0;
}

// A page of a huge one that base slots map. Only root is told; for others such a page is like any other.
bool is_piece_of_huge_page(PageIndex at) {
  constexpr std::uint64_t kPresent = std::uint64_t{1} << 63, kFrame = (std::uint64_t{1} << 55) - 1;
  constexpr std::uint64_t kHugePage = std::uint64_t{1} << 22;
  const std::uint64_t slot = word_at("/proc/self/pagemap", at.raw());
  if ((slot & kPresent) == 0 || (slot & kFrame) == 0) return false;
  return (word_at("/proc/kpageflags", slot & kFrame) & kHugePage) != 0;
}

// Taking one page out of a huge one makes the kernel split it, and what is all zeros it replaces by the zero page on that
// occasion. The real device only maps it by base pages (EX-01): they become ordinary pages again.
void fill_zero_pages(AddressSpace& space, PageIndex at) {
  PageRun runs[kPagesPerHuge];
  const Result<std::size_t> found = space.mmu().scan(unit_of(at), runs, nullptr);
  for (std::size_t i = 0; found && i < *found; ++i) {
    if ((runs[i].kind & PageRun::kZero) != 0) (void)space.mmu().populate(runs[i].range, true);
  }
}

int errno_of(const Error& error) {
  switch (error.code) {
    case Errc::kNotPermitted: return -EPERM;
    case Errc::kBusy: return -EBUSY;
    case Errc::kNotSupported: return -EOPNOTSUPP;
    case Errc::kNoMemory: return -ENOMEM;
    case Errc::kInvalid: return -EINVAL;
    default: return -EFAULT;
  }
}

}  // namespace

Mirror::Mirror(Session& session, Node& node, OpenFlags& flags) noexcept
    : session_(session), node_(node), flags_(flags), table_(session.source()) {}
Mirror::~Mirror() = default;

int Mirror::run(unsigned number, Command& command, CallerBuffer& buffer) noexcept {
  // ABI-07, in this order.
  if (command.addr % kPageSize != 0) return -EINVAL;
  if (command.addr >= command.addr + command.npages * kPageSize) return -EINVAL;
  command.cpages = command.faults = 0;
  session_.follow_family();
  if (number <= static_cast<unsigned>(Number::kExclusive) && command.npages < (std::uint64_t{1} << 24)) {
    session_.watch({PageIndex(command.addr >> kPageShift), PageCount(command.npages)});
  }
  switch (static_cast<Number>(number)) {
    case Number::kRead: return read(command, buffer);
    case Number::kWrite: return write(command, buffer);
    case Number::kMigrateToDev: return migrate_to_device(command, buffer);
    case Number::kMigrateToSys: return migrate_to_system(command);
    case Number::kSnapshot: return snapshot(command, buffer);
    case Number::kExclusive: return exclusive(command, buffer);
    case Number::kCheckExclusive: return check_exclusive(command);
    case Number::kRelease: node_.evict(true); session_.note_evicted(node_.minor()); return 0;
    case Number::kFlags: flags_.value.store(command.npages, std::memory_order_release); return 0;
  }
  return -EINVAL;
}

// ---- device page table -------------------------------------------------------------------------------------------

PageEntry Mirror::entry(PageIndex at) noexcept {
  MutexLock hold(mutex_);
  return table_.get(at);
}

void Mirror::forget_range(PageRange range) noexcept {
  MutexLock hold(mutex_);
  for (PageIndex at = table_.next_used(range.first, range.end()); at < range.end();
       at = table_.next_used(at, range.end())) {
    table_.update(at, PageEntry());
  }
  table_.trim(range);
}

bool Mirror::invalidate(const NotifierRange& range, std::uint64_t cur_seq) noexcept {
  // ABI-12: our own migrations keep the table right themselves.
  if (range.event == NotifyEvent::kMigrate && range.owner == &node_) return true;
  {
    MutexLock hold(mutex_);
    set_seq(cur_seq);
  }
  // ABI-13: the real device drops the page after the range as well, and its clients see that.
  forget_range(PageRange::between(PageIndex::of(range.start), PageIndex::of(range.end) + PageCount(1)));
  return true;
}

// ---- reading and writing through the device ------------------------------------------------------------------------

int Mirror::fault_round(PageRange rest, bool write) noexcept {
  NotifierRegistry& notifiers = session_.notifiers();
  const std::int64_t deadline = session_.space().clock().now_ns() + kPatienceNs;
  const auto self = static_cast<std::uint32_t>(sys::gettid());
  (void)session_.take_failed_fault(self);
  for (PageIndex at = rest.first; at < rest.end();) {
    const PageRange block = PageRange::between(at, std::min(at + PageCount(kRoundPages), rest.end()));
    HmmPfn words[kRoundPages];
    HmmRange range;
    range.registry = &notifiers;
    range.notifier = this;
    range.start = block.first.address();
    range.end = block.end().address();
    range.pfns = words;
    range.default_flags = HmmPfn::kReqFault | (write ? HmmPfn::kReqWrite : 0);
    range.dev_private_owner = &node_;
    range.watch_within = kEverything;
    range.notifier_seq = notifiers.read_begin(*this);
    const Result<void> looked = hmm_range_fault(session_.space(), range);
    if (!looked && looked.error().code == Errc::kBusy && session_.space().clock().now_ns() < deadline) continue;
    if (!looked) return errno_of(looked.error());
    if (session_.take_failed_fault(self)) return -EFAULT;
    for (std::uint64_t i = 0; write && i < block.count.raw(); ++i) {
      if (!words[i].writable()) return -EFAULT;  // WR-05: the readable flavour of an own page
    }
    MutexLock hold(mutex_);
    if (notifiers.read_retry(*this, range.notifier_seq)) continue;
    if (!table_.prepare(block)) return -ENOMEM;
    for (std::uint64_t i = 0; i < block.count.raw(); ++i) {
      table_.update(block.first + PageCount(i),
                    PageEntry(PageState::kDevice, words[i].pfn(), words[i].writable() ? kTagWrite : 0));
    }
    at = block.end();
  }
  return 0;
}

std::uint64_t Mirror::copy_out(PageRange range, std::byte* data) noexcept {
  for (std::uint64_t i = 0; i < range.count.raw(); ++i) {
    const PageIndex at = range.first + PageCount(i);
    std::byte* to = data + i * kPageSize;
    PageEntry known;
    bool private_page = false;
    {
      // A page that goes home is forgotten here first, so while this is held its contents stay where they are.
      MutexLock hold(mutex_);
      known = table_.get(at);
      const Pfn pfn = known.pfn();
      private_page = !known.is_ram() && pfn.is_device() && node_.map().contains(pfn) && !node_.coherent();
      if (private_page) std::memcpy(to, node_.bytes(pfn), kPageSize);
    }
    if (known.is_ram()) return i;
    if (private_page) continue;
    const Pfn pfn = known.pfn();
    if (known.has(kTagAtomic)) {
      std::memcpy(to, session_.space().bytes(pfn), kPageSize);
    } else if (!read_program(to, at, kPageSize)) {
      // Unmapped, truncated: the kernel would have told us. A further round of faults says what is wrong.
      forget_range({at, PageCount(1)});
      return i;
    }
    if (entry(at) != known) return i;  // taken away while we copied: what was copied may be a mixture
  }
  return range.count.raw();
}

std::uint64_t Mirror::copy_in(PageRange range, const std::byte* data) noexcept {
  for (std::uint64_t i = 0; i < range.count.raw(); ++i) {
    const PageIndex at = range.first + PageCount(i);
    const std::byte* from = data + i * kPageSize;
    {
      MutexLock hold(mutex_);
      const PageEntry known = table_.get(at);
      if (known.is_ram() || !known.has(kTagWrite)) return i;
      const Pfn pfn = known.pfn();
      if (pfn.is_device() && node_.map().contains(pfn) && !node_.coherent()) {
        std::memcpy(node_.bytes(pfn), from, kPageSize);
        continue;
      }
    }
    if (!write_program(from, at, kPageSize)) {
      forget_range({at, PageCount(1)});
      return i;
    }
  }
  return range.count.raw();
}

int Mirror::read(Command& command, CallerBuffer& buffer) noexcept {
  const PageRange range{PageIndex(command.addr >> kPageShift), PageCount(command.npages)};
  Bounce bounce(command.npages * kPageSize);
  if (bounce.data() == nullptr) return -ENOMEM;
  if (range.end().raw() + kRoundPages > (std::uint64_t{1} << 52)) return -EINVAL;  // RD-06
  for (std::uint64_t done = 0;;) {
    const PageRange rest = PageRange::between(range.first + PageCount(done), range.end());
    done += copy_out(rest, bounce.data() + done * kPageSize);
    if (done == command.npages) break;
    const int error = fault_round(PageRange::between(range.first + PageCount(done), range.end()), false);
    if (error != 0) return error;
    ++command.faults;
  }
  if (!buffer.put(0, bounce.data(), command.npages * kPageSize)) return -EFAULT;
  command.cpages = command.npages;
  return 0;
}

int Mirror::write(Command& command, CallerBuffer& buffer) noexcept {
  const PageRange range{PageIndex(command.addr >> kPageShift), PageCount(command.npages)};
  Bounce bounce(command.npages * kPageSize);
  if (bounce.data() == nullptr) return -ENOMEM;
  if (!buffer.get(0, bounce.data(), command.npages * kPageSize)) return -EFAULT;
  if (range.end().raw() + kRoundPages > (std::uint64_t{1} << 52)) return -EINVAL;
  for (std::uint64_t done = 0;;) {
    const PageRange rest = PageRange::between(range.first + PageCount(done), range.end());
    done += copy_in(rest, bounce.data() + done * kPageSize);
    if (done == command.npages) break;
    const int error = fault_round(PageRange::between(range.first + PageCount(done), range.end()), true);
    if (error != 0) return error;
    ++command.faults;
  }
  command.cpages = command.npages;
  return 0;
}

PageRange Mirror::run_on_node(PageRange range, Pfn* at) noexcept {
  if (node_.coherent()) return {};
  MutexLock hold(mutex_);
  const Pfn first = table_.get(range.first).pfn();
  if (table_.get(range.first).is_ram() || !first.is_device() || !node_.map().contains(first)) return {};
  std::uint64_t n = 1;
  for (; n < range.count.raw() && n < kPagesPerHuge; ++n) {
    const PageEntry next = table_.get(range.first + PageCount(n));
    if (next.is_ram() || next.pfn() != first + PageCount(n) || !node_.map().contains(next.pfn())) break;
  }
  *at = first;
  return {range.first, PageCount(n)};
}

int Mirror::deliver(PageRange range, Command& command, CallerBuffer& buffer) noexcept {
  // In slices: nothing may be written unless the whole range is there, so the entries are looked at first.
  {
    MutexLock hold(mutex_);
    for (PageIndex at = range.first; at < range.end(); ++at) {
      if (table_.get(at).is_ram()) return -ENOENT;
    }
  }
  constexpr std::uint64_t kSlice = kPagesPerHuge;
  Bounce bounce(std::min(kSlice, range.count.raw()) * kPageSize);
  if (bounce.data() == nullptr) return -ENOMEM;
  for (std::uint64_t done = 0; done < range.count.raw();) {
    const PageRange rest = PageRange::between(range.first + PageCount(done), range.end());
    Pfn from, still;
    if (const PageRange run = run_on_node(rest, &from); !run.empty()) {
      // What lies in one piece on the node goes to the caller without a stop.
      if (!buffer.put(done * kPageSize, node_.bytes(from), run.count.bytes())) return -EFAULT;
      if (run_on_node(run, &still) != run || still != from) return -ENOENT;  // taken away while we copied
      done += run.count.raw();
      continue;
    }
    const PageRange slice = PageRange{rest.first, PageCount(kSlice)}.intersect(rest);
    if (copy_out(slice, bounce.data()) != slice.count.raw()) return -ENOENT;
    if (!buffer.put(done * kPageSize, bounce.data(), slice.count.bytes())) return -EFAULT;
    done += slice.count.raw();
  }
  command.cpages = command.npages;
  return 0;
}

// ---- snapshot and exclusive access -----------------------------------------------------------------------------------

int Mirror::snapshot(Command& command, CallerBuffer& buffer) noexcept {
  const PageRange whole{PageIndex(command.addr >> kPageShift), PageCount(command.npages)};
  NotifierRegistry& notifiers = session_.notifiers();
  const std::int64_t deadline = session_.space().clock().now_ns() + kPatienceNs;
  for (PageIndex at = whole.first; at < whole.end();) {
    const PageRange block = PageRange::between(at, std::min(at + PageCount(kRoundPages), whole.end()));
    if (at.raw() + kRoundPages >= (std::uint64_t{1} << 52)) return -EOVERFLOW;  // the block's end wraps round
    HmmPfn words[kRoundPages];
    HmmRange range;
    range.registry = &notifiers;
    range.notifier = this;
    range.start = block.first.address();
    range.end = block.end().address();
    range.pfns = words;
    range.dev_private_owner = &node_;
    range.notifier_seq = notifiers.read_begin(*this);
    const Result<void> looked = hmm_range_fault(session_.space(), range);
    const bool stale = (!looked && looked.error().code == Errc::kBusy) || notifiers.read_retry(*this, range.notifier_seq);
    if (stale && session_.space().clock().now_ns() < deadline) continue;
    if (stale) return -EBUSY;
    if (!looked) return errno_of(looked.error());
    std::byte bytes[kRoundPages];
    for (std::uint64_t i = 0; i < block.count.raw(); ++i) {
      std::uint8_t byte = snapshot_byte(words[i]);
      // Shared before anybody watched: the kernel alone knows that it would be copied.
      if ((byte & ~kProtPmd) == kProtWrite && is_shared_private(block.first + PageCount(i))) {
        byte = static_cast<std::uint8_t>((byte & ~kProtWrite) | kProtRead);
      }
      bytes[i] = std::byte{byte};
    }
    if (!buffer.put((at - whole.first).raw(), bytes, block.count.raw())) return -EFAULT;
    at = block.end();
  }
  command.cpages = command.npages;
  return 0;
}

bool Mirror::is_shared_private(PageIndex at) noexcept {
  Mmu& mmu = session_.space().mmu();
  if (!mmu.is_shared(at).value_or(false)) return false;
  const Result<Mapping> mapping = mmu.mapping_at_or_above(at);
  return mapping && mapping->range.contains(at) && mapping->is_private_anonymous();
}

std::uint8_t Mirror::snapshot_byte(HmmPfn word) noexcept {
  if (word.error()) return kProtError;
  if (!word.valid()) return kProtNone;
  std::uint8_t byte = word.writable() ? kProtWrite : kProtRead;
  if (word.order() == kHugeOrder) byte |= kProtPmd;
  if (word.pfn() == Pfn()) return byte | kProtZero;
  const PageMap* map = session_.space().map_of(word.pfn());
  if (map == nullptr) return byte;
  if (map->type() == MemoryType::kPrivate) return byte | kProtPrivateLocal;
  byte &= static_cast<std::uint8_t>(~kProtPmd);  // whatever the kernel has made of base pages since
  return byte | (map == &node_.map() ? kProtCoherentLocal : kProtCoherentRemote);
}

int Mirror::exclusive(Command& command, CallerBuffer& buffer) noexcept {
  const PageRange range{PageIndex(command.addr >> kPageShift), PageCount(command.npages)};
  for (PageIndex at = range.first; at < range.end(); ++at) {
    Mmu& mmu = session_.space().mmu();
    const Result<Mapping> mapping = mmu.mapping_at_or_above(at);
    if (mapping && mapping->range.contains(at) && mapping->has(Mapping::kWritable)) {
      session_.dissolve_zero_units({at, PageCount(1)});
      (void)mmu.populate({at, PageCount(1)}, true);
      session_.file_copies().take(session_.space(), {at, PageCount(1)});
    }
    const bool huge = is_huge_ram(session_.space(), at);
    const bool piece = !huge && is_piece_of_huge_page(at);
    const Result<Pfn> frame = make_device_exclusive(session_.space(), at.address(), nullptr);
    if (!frame) return errno_of(frame.error());
    if (huge) {
      fill_zero_pages(session_.space(), at);
      volatile std::byte* taken = session_.space().bytes(*frame);
      *taken = *taken;  // the page itself may be the zero page by now
    }
    if (huge || piece) session_.note_exclusive_unit(at.huge_base());
    {
      MutexLock hold(mutex_);
      if (!table_.prepare({at, PageCount(1)})) {
        mutex_.unlock();
        release_exclusive(session_.space(), *frame);
        mutex_.lock();
        return -ENOMEM;
      }
      table_.update(at, PageEntry(PageState::kDevice, *frame, kTagAtomic));
    }
    release_exclusive(session_.space(), *frame);
  }
  return deliver(range, command, buffer);
}

int Mirror::check_exclusive(Command& command) noexcept {
  const PageRange range{PageIndex(command.addr >> kPageShift), PageCount(command.npages)};
  MutexLock hold(mutex_);
  bool atomic = false;
  table_.for_each(range, [&](PageRange, PageEntry known) {
    atomic = atomic || known.has(kTagAtomic);
    return !atomic;
  });
  return atomic ? -EPERM : 0;
}

}  // namespace whimbrel::mirror
