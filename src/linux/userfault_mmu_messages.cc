// Messages: waiting for them and turning the kernel's records into ours.
#include <linux/userfaultfd.h>
#include <poll.h>

#include "linux/sys.h"
#include "linux/userfault_mmu.h"

namespace whimbrel {
namespace {

// Without an eventfd (the program left us no descriptor) an interruption is noticed this late.
constexpr std::int64_t kSlice = 10'000'000;

Message translate(const uffd_msg& from) noexcept {
  Message to;
  switch (from.event) {
    case UFFD_EVENT_PAGEFAULT:
      to.kind = Message::Kind::kFault;
      to.write = (from.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WRITE) != 0;
      to.write_protect = (from.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0;
      to.thread = from.arg.pagefault.feat.ptid;
      to.address = VirtualAddress(from.arg.pagefault.address);
      to.range = {PageIndex::of(to.address), PageCount(1)};
      break;
    case UFFD_EVENT_FORK:
      to.kind = Message::Kind::kFork;
      to.thread = from.arg.fork.ufd;
      break;
    case UFFD_EVENT_REMAP:
      to.kind = Message::Kind::kRemap;
      to.range = {PageIndex::of(VirtualAddress(from.arg.remap.from)), PageCount(from.arg.remap.len >> kPageShift)};
      to.to = PageIndex::of(VirtualAddress(from.arg.remap.to));
      break;
    case UFFD_EVENT_REMOVE:
    case UFFD_EVENT_UNMAP:
      to.kind = from.event == UFFD_EVENT_REMOVE ? Message::Kind::kRemove : Message::Kind::kUnmap;
      to.range = PageRange::between(PageIndex::of(VirtualAddress(from.arg.remove.start)),
                                    PageIndex::of(VirtualAddress(from.arg.remove.end)));
      break;
    default:
      break;
  }
  return to;
}

bool known(const uffd_msg& message) noexcept {
  return message.event >= UFFD_EVENT_PAGEFAULT && message.event <= UFFD_EVENT_UNMAP;
}

}  // namespace

bool UserfaultMmu::wait_for_message(std::int64_t nanoseconds) noexcept {
  const bool has_bell = fds_.has(Descriptors::kBell);
  for (;;) {
    if (interrupted_.exchange(false, std::memory_order_acquire)) {
      if (has_bell) silence_bell();
      nanoseconds = 0;  // a message that is there all the same is worth telling
    }
    const std::int64_t slice = has_bell || (nanoseconds >= 0 && nanoseconds < kSlice) ? nanoseconds : kSlice;
    const int also = also_.load(std::memory_order_relaxed);
    pollfd waits[3] = {{userfault(), POLLIN, 0}, {has_bell ? fds_[Descriptors::kBell] : -1, POLLIN, 0}, {also, POLLIN, 0}};
    const Result<int> ready = sys::poll(waits, also >= 0 ? 3 : has_bell ? 2 : 1, slice);
    if (ready && *ready > 0 && waits[0].revents != 0) return true;
    if (ready && *ready > 0 && waits[2].revents != 0) return false;
    if (ready && *ready > 0) {
      // The bell. Its flag was set before it rang, but may have been seen, and this wait ended for it, before: then nobody
      // else would silence it, and it would end every poll from now on.
      silence_bell();
      if (nanoseconds != 0) continue;
    }
    if (nanoseconds == 0 || has_bell) return false;
    if (nanoseconds > 0) nanoseconds -= slice;
  }
}

void UserfaultMmu::silence_bell() noexcept {
  std::uint64_t rings = 0;
  (void)sys::read(fds_[Descriptors::kBell], &rings, sizeof rings);
}

void UserfaultMmu::interrupt() noexcept {
  interrupted_.store(true, std::memory_order_release);
  if (!fds_.has(Descriptors::kBell)) return;
  const std::uint64_t ring = 1;
  (void)sys::write(fds_[Descriptors::kBell], &ring, sizeof ring);
}

bool UserfaultMmu::has_unread() noexcept {
  pollfd wait{userfault(), POLLIN, 0};
  const Result<int> ready = sys::poll(&wait, 1, 0);
  return ready && *ready > 0 && (wait.revents & POLLIN) != 0;
}

std::size_t UserfaultMmu::read_messages(std::span<Message> out) noexcept {
  constexpr std::size_t kBatch = 32;
  uffd_msg batch[kBatch];
  const std::size_t room = out.size() < kBatch ? out.size() : kBatch;
  if (room == 0) return 0;
  const Result<std::size_t> got = sys::read(userfault(), batch, room * sizeof(uffd_msg));
  if (!got) return 0;  // nothing there, or withdrawn meanwhile
  std::size_t filled = 0;
  for (std::size_t i = 0; i < *got / sizeof(uffd_msg); ++i) {
    if (known(batch[i])) out[filled++] = translate(batch[i]);
  }
  return filled;
}

}  // namespace whimbrel
