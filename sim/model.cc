#include "sim/model.h"

#include "base/check.h"

namespace whimbrel::sim {

void Model::map(PageRange range, bool readable, bool writable) {
  for (PageIndex page = range.first; page < range.end(); ++page) {
    Page& fresh = pages_[page] = Page{};
    fresh.readable = readable;
    fresh.writable = writable;
  }
}

void Model::unmap(PageRange range) { pages_.erase(pages_.lower_bound(range.first), pages_.lower_bound(range.end())); }

void Model::protect(PageRange range, bool readable, bool writable) {
  for (auto it = pages_.lower_bound(range.first); it != pages_.end() && it->first < range.end(); ++it) {
    it->second.readable = readable;
    it->second.writable = writable;
  }
}

void Model::leave_open(Page& page) { page.open_until = page.now++; }

void Model::move(PageRange from, PageIndex to, bool keep_source) {
  std::map<PageIndex, Page> moved;
  for (auto it = pages_.lower_bound(from.first); it != pages_.end() && it->first < from.end();) {
    Page old = it->second;
    if (old.discards_running > 0) {
      // The discard goes on at the old address; whether it had taken this page is not known.
      old.discards_running = 0;
      leave_open(old);
    }
    moved.emplace(to + (it->first - from.first), std::move(old));
    if (keep_source) {
      it->second.words.clear();
      it->second.may_still_vanish = false;
      ++it;
    } else {
      it = pages_.erase(it);
    }
  }
  for (auto& [page, contents] : moved) pages_[page] = std::move(contents);
}

void Model::discard_begins(PageRange range) {
  for (auto it = pages_.lower_bound(range.first); it != pages_.end() && it->first < range.end(); ++it) {
    ++it->second.discards_running;
    leave_open(it->second);
  }
}

void Model::discard_ends(PageRange range) {
  for (auto it = pages_.lower_bound(range.first); it != pages_.end() && it->first < range.end(); ++it) {
    Page& page = it->second;
    page.words.clear();
    if (page.discards_running > 0) --page.discards_running;
    page.may_still_vanish = false;
  }
}

void Model::discard_cancelled(PageRange range) {
  for (auto it = pages_.lower_bound(range.first); it != pages_.end() && it->first < range.end(); ++it) {
    if (it->second.discards_running == 0) continue;
    --it->second.discards_running;
    leave_open(it->second);  // what was written meanwhile may be gone as well
  }
}

void Model::free_lazily(PageRange range) {
  for (auto it = pages_.lower_bound(range.first); it != pages_.end() && it->first < range.end(); ++it) {
    Page& page = it->second;
    if (page.discards_running > 0) --page.discards_running;
    page.may_still_vanish = true;
    leave_open(page);
  }
}

bool Model::allows(VirtualAddress address, bool write) const {
  const auto it = pages_.find(PageIndex::of(address));
  return it != pages_.end() && (write ? it->second.writable : it->second.readable);
}

void Model::write(VirtualAddress address, std::uint64_t word) {
  const auto it = pages_.find(PageIndex::of(address));
  CHECK(it != pages_.end() && it->second.writable);
  const std::uint64_t offset = address.raw() & (kPageSize - 1);
  it->second.words[offset] = {word, it->second.now};
  it->second.may_still_vanish = false;
}

std::vector<VirtualAddress> Model::written() const {
  std::vector<VirtualAddress> addresses;
  for (const auto& [page, contents] : pages_) {
    for (const auto& [offset, word] : contents.words) addresses.emplace_back(page.address().raw() + offset);
  }
  return addresses;
}

std::string Model::check_read(VirtualAddress address, std::uint64_t word) {
  ++reads_checked_;
  const auto it = pages_.find(PageIndex::of(address));
  if (it == pages_.end()) return "no mapping there";
  Page& page = it->second;
  const std::uint64_t offset = address.raw() & (kPageSize - 1);
  const auto stored = page.words.find(offset);
  if (stored == page.words.end()) return word == 0 ? "" : "expected 0";
  const auto [expected, born] = stored->second;
  const bool open = born <= page.open_until || page.discards_running > 0;
  if (word == expected) {
    // Still there: no discard since its birth has taken it.
    const bool settles = open && expected != 0 && !page.may_still_vanish && page.discards_running == 0;
    if (settles) page.open_until = born - 1;
    return "";
  }
  if (open && word == 0) {
    // While a discard is running the page can still be seen either way; afterwards this word is gone, with all that is
    // as old.
    if (page.discards_running == 0) {
      std::erase_if(page.words, [born](const auto& entry) { return entry.second.born <= born; });
    }
    return "";
  }
  std::string text = "expected " + std::to_string(expected);
  if (open) text += " or 0";
  return text;
}

}  // namespace whimbrel::sim
