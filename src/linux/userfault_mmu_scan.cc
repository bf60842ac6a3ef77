// What is present: PAGEMAP_SCAN, or the words of pagemap on older kernels, or mincore where pagemap cannot be opened.
#include <sys/mman.h>
#include <sys/syscall.h>

#include <cerrno>

#include "linux/sys.h"
#include "linux/uapi.h"
#include "linux/userfault_mmu.h"

namespace whimbrel {
namespace {

std::uint32_t kind_of_categories(std::uint64_t categories) noexcept {
  std::uint32_t kind = 0;
  if ((categories & uapi::kPagePresent) != 0) kind |= PageRun::kPresent;
  if ((categories & uapi::kPageSwapped) != 0) kind |= PageRun::kSwapped;
  if ((categories & uapi::kPagePfnZero) != 0) kind |= PageRun::kZero;
  if ((categories & uapi::kPageHuge) != 0) kind |= PageRun::kHuge;
  if ((categories & uapi::kPageFile) != 0) kind |= PageRun::kFile;
  if ((categories & uapi::kPageWritten) != 0) kind |= PageRun::kWritten;
  if ((categories & uapi::kPageGuard) != 0) kind |= PageRun::kGuard;
  return kind;
}

std::uint32_t kind_of_word(std::uint64_t word) noexcept {
  std::uint32_t kind = 0;
  if ((word & uapi::kWordPresent) != 0) kind |= PageRun::kPresent;
  if ((word & uapi::kWordSwapped) != 0) kind |= PageRun::kSwapped;
  if (kind == 0) return 0;  // a hole
  if ((word & uapi::kWordFile) != 0) kind |= PageRun::kFile;
  if ((word & uapi::kWordGuard) != 0) kind |= PageRun::kGuard;
  if ((word & uapi::kWordUffdWp) == 0) kind |= PageRun::kWritten;
  if ((word & (uapi::kWordPresent | uapi::kWordFile | uapi::kWordExclusive)) == uapi::kWordPresent) {
    kind |= PageRun::kShared;
  }
  return kind;
}

// Collects runs, joining neighbours of the same kind.
class Runs {
 public:
  explicit Runs(std::span<PageRun> out) noexcept : out_(out) {}
  // False: no room for another run; the pages were not taken.
  bool add(PageRange range, std::uint32_t kind) noexcept {
    if (range.empty()) return true;
    if (count_ > 0 && out_[count_ - 1].range.end() == range.first && out_[count_ - 1].kind == kind) {
      out_[count_ - 1].range.count += range.count;
      return true;
    }
    if (count_ == out_.size()) return false;
    out_[count_++] = {range, kind};
    return true;
  }
  [[nodiscard]] std::size_t count() const noexcept { return count_; }
  [[nodiscard]] std::size_t room() const noexcept { return out_.size() - count_; }

 private:
  std::span<PageRun> out_;
  std::size_t count_ = 0;
};

// The shared zero page and pages of files are always shared, and nothing follows from it.
bool can_be_shared(std::uint32_t kind) noexcept {
  return (kind & PageRun::kPresent) != 0 && (kind & (PageRun::kFile | PageRun::kZero)) == 0;
}

// Adds these pages, all present and of one kind, told apart by whether another process maps them too. Returns the first
// that there was no room for, or the end.
PageIndex add_by_sharing(int pagemap, PageRange range, std::uint32_t kind, Runs& runs) noexcept {
  constexpr std::size_t kBatch = 256;
  std::uint64_t words[kBatch];
  PageIndex at = range.first;
  while (at < range.end()) {
    const std::uint64_t left = (range.end() - at).raw();
    const std::size_t want = (left < kBatch ? left : kBatch) * sizeof words[0];
    const Result<std::size_t> got = sys::pread(pagemap, words, want, at.raw() * sizeof words[0]);
    if (!got && got.error().sys == EINTR) continue;
    const std::size_t count = got ? *got / sizeof words[0] : 0;
    if (count == 0) return runs.add(PageRange::between(at, range.end()), kind) ? range.end() : at;
    for (std::size_t i = 0; i < count; ++i, ++at) {
      const std::uint32_t shared = kind_of_word(words[i]) & PageRun::kShared;
      if (!runs.add({at, PageCount(1)}, kind | shared)) return at;
    }
  }
  return at;
}

}  // namespace

Result<std::size_t> UserfaultMmu::scan(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept {
  PageIndex ignored;
  if (scanned == nullptr) scanned = &ignored;
  *scanned = range.first;
  if (!fds_.has(Descriptors::kPagemap)) return scan_by_mincore(range, out, scanned);
  if (!no_pagemap_scan_.load(std::memory_order_relaxed)) {
    Result<std::size_t> runs = scan_by_ioctl(range, out, scanned);
    if (runs || runs.error().sys != ENOTTY) return runs;
    no_pagemap_scan_.store(true, std::memory_order_relaxed);
  }
  return scan_by_words(range, out, scanned);
}

Result<bool> UserfaultMmu::is_shared(PageIndex page) noexcept {
  constexpr std::uint64_t kWordExclusive = std::uint64_t{1} << 56;
  std::uint64_t word = 0;
  for (;;) {
    const Result<std::size_t> got =
        sys::pread(fds_[Descriptors::kPagemap], &word, sizeof word, page.raw() * sizeof word);
    if (!got && got.error().sys == EINTR) continue;
    if (!got) return std::unexpected(got.error());
    if (*got != sizeof word || (word & uapi::kWordPresent) == 0) return fail(Errc::kNotFound, 0, "pagemap");
    return (word & kWordExclusive) == 0;
  }
}

Result<std::size_t> UserfaultMmu::scan_by_ioctl(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept {
  constexpr std::size_t kBatch = 64;
  uapi::PageRegion batch[kBatch];
  Runs runs(out);
  PageIndex at = range.first;
  const bool sharing = report_sharing_.load(std::memory_order_relaxed);
  while (at < range.end() && runs.room() > 0) {
    const bool no_guard = no_guard_category_.load(std::memory_order_relaxed);
    uapi::PagemapScan request{};
    request.size = sizeof request;
    request.start = at.address().raw();
    request.end = range.end().address().raw();
    request.vec = VirtualAddress(batch).raw();
    request.vec_len = runs.room() < kBatch ? runs.room() : kBatch;
    // Holes count as "written" where nothing was armed: only presence or an entry makes a run.
    request.category_anyof_mask = uapi::kPagePresent | uapi::kPageSwapped;
    request.return_mask = uapi::kPagePresent | uapi::kPageSwapped | uapi::kPagePfnZero | uapi::kPageHuge |
                          uapi::kPageFile | uapi::kPageWritten | (no_guard ? 0 : std::uint64_t{uapi::kPageGuard});
    const Result<long> got = sys::ioctl(fds_[Descriptors::kPagemap], uapi::kPagemapScan, &request, "PAGEMAP_SCAN");
    if (!got) {
      if (got.error().sys == EINTR) continue;
      if (got.error().sys == EINVAL && !no_guard) {
        no_guard_category_.store(true, std::memory_order_relaxed);
        continue;
      }
      return std::unexpected(got.error());
    }
    for (long i = 0; i < *got; ++i) {
      const PageRange range_of_kind = PageRange::between(PageIndex::of(VirtualAddress(batch[i].start)),
                                                         PageIndex::of(VirtualAddress(batch[i].end)));
      const std::uint32_t kind = kind_of_categories(batch[i].categories);
      if (!sharing || !can_be_shared(kind)) {
        if (runs.add(range_of_kind, kind)) continue;
        *scanned = range_of_kind.first;
        return runs.count();
      }
      const PageIndex stopped = add_by_sharing(fds_[Descriptors::kPagemap], range_of_kind, kind, runs);
      if (stopped == range_of_kind.end()) continue;
      *scanned = stopped;
      return runs.count();
    }
    const PageIndex reached = PageIndex::of(VirtualAddress(request.walk_end));
    at = *got == 0 || reached <= at ? range.end() : reached;
  }
  *scanned = at;
  return runs.count();
}

Result<std::size_t> UserfaultMmu::scan_by_words(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept {
  constexpr std::size_t kBatch = 256;
  std::uint64_t words[kBatch];
  const std::uint32_t wanted = report_sharing_.load(std::memory_order_relaxed) ? ~0u : ~std::uint32_t{PageRun::kShared};
  Runs runs(out);
  PageIndex at = range.first;
  while (at < range.end()) {
    const std::uint64_t left = (range.end() - at).raw();
    const std::size_t want = (left < kBatch ? left : kBatch) * sizeof words[0];
    const Result<std::size_t> got = sys::pread(fds_[Descriptors::kPagemap], words, want, at.raw() * sizeof words[0]);
    if (!got) {
      if (got.error().sys == EINTR) continue;
      return std::unexpected(got.error());
    }
    const std::size_t count = *got / sizeof words[0];
    if (count == 0) break;  // beyond the end of user addresses
    for (std::size_t i = 0; i < count; ++i, ++at) {
      const std::uint32_t kind = kind_of_word(words[i]) & wanted;
      if (kind != 0 && !runs.add({at, PageCount(1)}, kind)) {
        *scanned = at;
        return runs.count();
      }
    }
  }
  *scanned = range.end();
  return runs.count();
}

Result<std::size_t> UserfaultMmu::scan_by_mincore(PageRange range, std::span<PageRun> out,
                                                  PageIndex* scanned) noexcept {
  constexpr std::size_t kBatch = 512;
  unsigned char resident[kBatch];
  Runs runs(out);
  PageIndex at = range.first;
  while (at < range.end()) {
    const Result<Mapping> mapping = mapping_at_or_above(at);
    if (!mapping && mapping.error().code != Errc::kNotFound) return std::unexpected(mapping.error());
    const PageRange here = mapping ? mapping->range.intersect(PageRange::between(at, range.end())) : PageRange{};
    if (here.empty()) break;
    const std::size_t count = here.count.raw() < kBatch ? here.count.raw() : kBatch;
    const long raw = sys::call(SYS_mincore, static_cast<long>(here.first.address().raw()),
                               static_cast<long>(PageCount(count).bytes()), sys::arg(resident));
    if (raw == -ENOMEM || raw == -EAGAIN) continue;  // changed since it was looked up
    if (raw < 0) return fail(sys::errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "mincore");
    at = here.first;
    for (std::size_t i = 0; i < count; ++i, ++at) {
      const std::uint32_t kind = PageRun::kPresent | PageRun::kWritten;
      if ((resident[i] & 1) != 0 && !runs.add({at, PageCount(1)}, kind)) {
        *scanned = at;
        return runs.count();
      }
    }
  }
  *scanned = range.end();
  return runs.count();
}

}  // namespace whimbrel
