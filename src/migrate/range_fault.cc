#include "migrate/range_fault.h"

#include <algorithm>

#include "base/mutex.h"

namespace whimbrel {
namespace {

// A page is moved within microseconds; what is swapped out for longer is believed after so many looks in one call.
constexpr std::int64_t kPause = 200'000;
constexpr int kMostPauses = 50;

class RangeFault {
 public:
  RangeFault(AddressSpace& space, HmmRange& range) : space_(space), range_(range) {}

  Result<void> run() {
    PageIndex at = PageIndex::of(range_.start);
    const PageIndex end = PageIndex::of(range_.end);
    while (at < end) {
      if (range_.registry != nullptr && range_.registry->check_retry(*range_.notifier, range_.notifier_seq)) {
        return fail(Errc::kBusy, 0, "hmm_range_fault");  // HR-09
      }
      need_ = {};
      const Result<PageIndex> next = walk(PageRange::between(at, end));
      if (!next) return std::unexpected(next.error());
      at = *next;
      if (unsettled_) {
        unsettled_ = false;
        Event nobody;
        nobody.wait(nobody.value(), kPause);
        continue;
      }
      if (need_.empty()) continue;
      if (const Result<void> faulted = fault_in(); !faulted) return faulted;
    }
    return {};
  }

 private:
  HmmPfn& word(PageIndex at) { return range_.pfns[(at - PageIndex::of(range_.start)).raw()]; }
  std::uint64_t request(PageIndex at) { return (word(at).raw() & range_.pfn_flags_mask) | range_.default_flags; }
  void answer(PageIndex at, std::uint64_t bits, std::uint64_t pfn = 0, unsigned order = 0) {
    word(at) = HmmPfn((word(at).raw() & HmmPfn::kSticky) | bits | (std::uint64_t{order} << HmmPfn::kOrderShift) | pfn);
  }
  // Nothing is accessible at `at`: a request makes it a fault to be done, or an error that no fault can mend.
  bool wanted(PageIndex at) { return (request(at) & HmmPfn::kReqFault) != 0; }

  // Answers pages from rest.first on until the end, the end of a mapping, or a page that must be faulted in first
  // (need_ is set then). Returns the first page not answered.
  Result<PageIndex> walk(PageRange rest) {
    MutexLock hold(space_.mutex());
    space_.pump_locked();
    const Result<Mapping> mapping = space_.mmu().mapping_at_or_above(rest.first);
    const PageIndex mapped_from = mapping ? std::min(mapping->range.first, rest.end()) : rest.end();
    if (rest.first < mapped_from) return no_access(PageRange::between(rest.first, mapped_from));
    const PageRange part = rest.intersect(mapping->range);
    if (!mapping->has(Mapping::kReadable) || mapping->has(Mapping::kKernelOwned)) return no_access(part);
    return walk_mapping_locked(part, *mapping);
  }

  Result<PageIndex> no_access(PageRange part) {
    for (PageIndex at = part.first; at < part.end(); ++at) {
      if (wanted(at)) return fail(Errc::kFault, 0, "hmm_range_fault: nothing readable there");
      answer(at, HmmPfn::kError);
    }
    return part.end();
  }

  Result<PageIndex> walk_mapping_locked(PageRange part, const Mapping& mapping) REQUIRES(space_.mutex()) {
    PageRun runs[128];
    std::size_t count = 0, r = 0;
    PageIndex scanned = part.first;
    for (PageIndex at = part.first; at < part.end(); ++at) {
      if (at >= scanned) {
        const Result<std::size_t> found = space_.mmu().scan(PageRange::between(at, part.end()), runs, &scanned);
        if (!found) return std::unexpected(found.error());
        count = *found;
        r = 0;
        if (scanned <= at) return fail(Errc::kAgain, 0, "hmm_range_fault: page scan");
      }
      const std::uint64_t want = request(at);
      if ((want & HmmPfn::kReqFault) != 0 && (want & HmmPfn::kReqWrite) != 0 && !mapping.has(Mapping::kWritable)) {
        return fail(Errc::kNotPermitted, 0, "hmm_range_fault: mapping is read-only");  // HR-06
      }
      const PageEntry entry = space_.table().get(at);
      std::uint64_t bits = 0, pfn = 0;
      unsigned order = 0;
      bool own = false;
      if (entry.state() == PageState::kDevice) {
        const PageMap* map = space_.map_of(entry.pfn());
        own = range_.dev_private_owner != nullptr && map->owner() == range_.dev_private_owner;
        order = entry.is_huge() ? kHugeOrder : 0;
        if (own) {
          bits = HmmPfn::kValid | (entry.has(PageEntry::kWritable) ? HmmPfn::kWrite : 0);
          pfn = entry.pfn().raw();
        } else if (order != 0) {
          bits = HmmPfn::kError;  // as the kernel says it
          order = 0;
        }
      } else if (entry.is_ram() || entry.state() == PageState::kCoherent) {
        while (r < count && runs[r].range.end() <= at) ++r;
        if (r < count && runs[r].range.contains(at) && (runs[r].kind & PageRun::kPresent) != 0) {
          bits = HmmPfn::kValid | (is_writable(runs[r], mapping) ? HmmPfn::kWrite : 0);
          pfn = !entry.is_ram() ? entry.pfn().raw() : (runs[r].kind & PageRun::kZero) != 0 ? 0 : at.raw();
          order = (runs[r].kind & PageRun::kHuge) != 0 ? kHugeOrder : 0;
        } else if (r < count && runs[r].range.contains(at) && (runs[r].kind & PageRun::kSwapped) != 0 &&
                   (want & HmmPfn::kReqFault) == 0 && pauses_ != 0) {
          // The kernel may be moving the page elsewhere in RAM (compaction), which looks the same as swap from here; inside the
          // kernel such a walk waits for the end of it. Where a fault is asked for, the fault waits.
          --pauses_;
          unsettled_ = true;
          return at;
        }
      }
      // HR-12: own device pages are never faulted, whatever is wanted.
      const bool enough = own || ((bits & HmmPfn::kValid) != 0 &&
                                  ((want & HmmPfn::kReqWrite) == 0 || (bits & HmmPfn::kWrite) != 0));
      if ((want & HmmPfn::kReqFault) != 0 && !enough) {
        need(at, part, (want & HmmPfn::kReqWrite) != 0);
        return at;
      }
      answer(at, bits, pfn, order);
    }
    return part.end();
  }

  // As far as it can be told from outside the kernel (UA-05).
  bool is_writable(const PageRun& run, const Mapping& mapping) {
    if (!space_.is_writable(run.kind, mapping)) return false;
    if (mapping.has(Mapping::kFileBacked) && !mapping.has(Mapping::kShared) && (run.kind & PageRun::kFile) != 0) return false;
    return true;
  }

  // HR-08: the pages behind this one that ask for the same are faulted with it.
  void need(PageIndex at, PageRange part, bool write) {
    PageIndex last = at + PageCount(1);
    while (last < part.end() && wanted(last) && ((request(last) & HmmPfn::kReqWrite) != 0) == write &&
           (last - at).raw() < 512) {
      ++last;
    }
    need_ = PageRange::between(at, last);
    need_write_ = write;
  }

  bool is_programs_own(PageRange part) {
    const Result<Mapping> mapping = space_.mmu().mapping_at_or_above(part.first);
    if (!mapping || !mapping->range.contains(part) || !mapping->is_private_anonymous()) return false;
    const PageRange home = mapping->range.intersect(range_.watch_within);
    if (!home.contains(part)) return false;
    const Result<void> watched = space_.mmu().watch(home);
    return !watched && watched.error().code == Errc::kExists;
  }

  Result<void> fault_in() {
    if (is_programs_own(need_)) return fail(Errc::kFault, 0, "hmm_range_fault: the program's own userfaultfd");
    for (PageIndex at = need_.first; at < need_.end(); ++at) {
      const Result<void> done = space_.mmu().populate({at, PageCount(1)}, need_write_);
      if (done) continue;
      if (done.error().code == Errc::kAgain || done.error().code == Errc::kBusy) return {};  // look again
      return at == need_.first ? Result<void>(fail(Errc::kFault, done.error().sys, "hmm_range_fault")) : Result<void>{};
    }
    return {};
  }

  AddressSpace& space_;
  HmmRange& range_;
  PageRange need_;
  bool need_write_ = false;
  bool unsettled_ = false;  // look again after a pause
  int pauses_ = kMostPauses;
};

}  // namespace

Result<void> hmm_range_fault(AddressSpace& space, HmmRange& range) noexcept {
  if (!(range.start < range.end) || !range.start.is_page_aligned() || !range.end.is_page_aligned()) {
    return fail(Errc::kInvalid, 0, "hmm_range_fault: range");  // HR-14
  }
  return RangeFault(space, range).run();
}

}  // namespace whimbrel
