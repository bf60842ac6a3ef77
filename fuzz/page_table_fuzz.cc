// The page table against a map: any order of its operations, with and without memory for new blocks.
#include <map>

#include "fuzz/fuzz.h"
#include "mm/heap_source.h"
#include "mm/page_table.h"

namespace whimbrel {
namespace {

// Far-apart places, each two units wide, so that neighbours, leaves and middle nodes all come into play.
constexpr std::uint64_t kPlaces[] = {0x400, 0x7f1234400, 0x7f1234400 + (1 << 16), 0x7fffffc00};

PageIndex some_page(fuzz::Decisions& in) {
  const std::uint64_t place = kPlaces[in.byte() % std::size(kPlaces)];
  return PageIndex(place + in.number(2) % (2 * kPagesPerHuge));
}

class Checked {
 public:
  explicit Checked(std::size_t limit) : heap_(limit), table_(heap_) {}

  void step(fuzz::Decisions& in) {
    const std::uint8_t what = in.byte();
    const PageIndex at = some_page(in);
    switch (what % 8) {
      case 0:
      case 1:
        return set(at, entry(in, what));
      case 2:
        return set_huge(at.huge_base(), what & 8 ? PageEntry() : entry(in, what));
      case 3:
        return split(at);
      case 4:
        return next_used(at, PageCount(1 + in.number(2) % 2048));
      case 5:
        return visit({at, PageCount(1 + in.number(2) % 1024)}, in.byte());
      case 6:
        return table_.trim({at, PageCount(in.number(3) << (what & 8 ? 20 : 0))});
      default:
        return update(at, PageCount(1 + in.below(64)), entry(in, what));
    }
  }

  void check(PageIndex at) const {
    PROPERTY(table_.used_pages() == model_.size(), "the number of used pages");
    const PageEntry got = table_.get(at).without(PageEntry::kHuge);
    PROPERTY(got == expected(at.raw()), "the entry is what was set");
  }
  void check_all() {
    auto known = model_.begin();
    table_.for_each({PageIndex(0), PageCount(std::uint64_t{1} << 35)}, [&](PageRange where, PageEntry entry) {
      for (std::uint64_t i = 0; i < where.count.raw(); ++i, ++known) {
        PROPERTY(known != model_.end() && known->first == where.first.raw() + i, "every used page is visited once");
        PROPERTY(entry.with_pfn(entry.pfn() + PageCount(i)).without(PageEntry::kHuge) == known->second,
                 "the visited entry is what was set");
      }
      return true;
    });
    PROPERTY(known == model_.end(), "no used page is left out");
  }
  [[nodiscard]] std::size_t heap_in_use() const { return heap_.bytes_in_use(); }

 private:
  static PageEntry entry(fuzz::Decisions& in, std::uint8_t what) {
    const std::uint64_t number = in.number(2);
    if (what >= 0xc0) return PageEntry();
    const auto state = static_cast<PageState>(1 + number % 7);
    return {state, kFirstDevicePfn + PageCount(number), number & 1 ? PageEntry::kWritable : 0};
  }
  PageEntry expected(std::uint64_t page) const {
    const auto known = model_.find(page);
    return known == model_.end() ? PageEntry() : known->second;
  }
  void remember(std::uint64_t page, PageEntry entry) {
    if (entry.is_ram()) {
      model_.erase(page);
    } else {
      model_[page] = entry;
    }
  }
  void set(PageIndex at, PageEntry entry) {
    if (table_.get(at).is_huge()) split(at);
    if (table_.get(at).is_huge()) return;  // no memory to split it
    const Result<void> done = table_.set(at, entry);
    PROPERTY(done || done.error().code == Errc::kNoMemory, "set fails for want of memory only");
    PROPERTY(done || !entry.is_ram(), "forgetting needs no memory");
    if (done) remember(at.raw(), entry);
    check(at);
  }
  void update(PageIndex from, PageCount count, PageEntry entry) {
    const PageRange range{from, count};
    for (std::uint64_t i = 0; i < count.raw(); ++i) {
      if (table_.get(from + PageCount(i)).is_huge()) return;
    }
    if (!table_.prepare(range)) return;
    for (std::uint64_t i = 0; i < count.raw(); ++i) {
      table_.update(from + PageCount(i), entry);
      remember(from.raw() + i, entry);
    }
    check(from);
    check(from + count);
  }
  void set_huge(PageIndex base, PageEntry entry) {
    const auto from = model_.lower_bound(base.raw());
    const bool empty = from == model_.end() || from->first >= base.raw() + kPagesPerHuge;
    if (!empty && !table_.get(base).is_huge()) return;
    const Result<void> done = table_.set_huge(base, entry);
    PROPERTY(done || empty, "a huge entry can be replaced without memory");
    for (std::uint64_t i = 0; done && i < kPagesPerHuge; ++i) {
      remember(base.raw() + i, entry.is_ram() ? entry : entry.with_pfn(entry.pfn() + PageCount(i)));
    }
    check(base);
    check(base + PageCount(kPagesPerHuge - 1));
  }
  void split(PageIndex at) {
    const bool was_huge = table_.get(at).is_huge();
    const Result<void> done = table_.split_huge(at.huge_base());
    PROPERTY(done || was_huge, "only a huge unit needs memory to be split");
    PROPERTY(!done || !table_.get(at).is_huge(), "a split unit is not huge");
    check(at);
  }
  void next_used(PageIndex at, PageCount within) {
    const PageIndex end = at + within;
    const auto known = model_.lower_bound(at.raw());
    const PageIndex wanted = known == model_.end() || known->first >= end.raw() ? end : PageIndex(known->first);
    const PageIndex found = table_.next_used(at, end);
    PROPERTY(found == wanted, "the next used page");
  }
  void visit(PageRange range, std::uint8_t most) {
    std::uint64_t seen = 0;
    PageIndex last = range.first;
    table_.for_each(range, [&](PageRange where, PageEntry entry) {
      PROPERTY(where.first >= last && where.end() <= range.end(), "visits ascend within the range");
      PROPERTY(entry.without(PageEntry::kHuge) == expected(where.first.raw()), "a visit shows the entry");
      last = where.end();
      return ++seen <= most;
    });
  }

  HeapSource heap_;
  PageTable table_;
  std::map<std::uint64_t, PageEntry> model_;
};

}  // namespace
}  // namespace whimbrel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace whimbrel;
  fuzz::Decisions in({data, size});
  const std::uint8_t scarce = in.byte();
  Checked table(scarce < 64 ? std::size_t{4096} * scarce : 0);
  for (int steps = 0; !in.at_end() && steps < 2000; ++steps) table.step(in);
  table.check_all();
  return 0;
}
