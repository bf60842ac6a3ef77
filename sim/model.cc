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

void Model::move(PageRange from, PageIndex to, bool keep_source) {
  std::map<PageIndex, Page> moved;
  for (auto it = pages_.lower_bound(from.first); it != pages_.end() && it->first < from.end();) {
    Page old = it->second;
    if (old.discards_running > 0) {
      // The discard goes on at the old address; whether it had taken this page is not known.
      old.discards_running = 0;
      old.undecided = true;
    }
    moved.emplace(to + (it->first - from.first), std::move(old));
    if (keep_source) {
      it->second.words.clear();
      it->second.settled.clear();
      it->second.undecided = it->second.may_still_vanish = false;
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
    if (!it->second.undecided) it->second.settled.clear();
    it->second.undecided = true;
  }
}

void Model::discard_ends(PageRange range) {
  for (auto it = pages_.lower_bound(range.first); it != pages_.end() && it->first < range.end(); ++it) {
    Page& page = it->second;
    page.words.clear();
    page.settled.clear();
    if (page.discards_running > 0) --page.discards_running;
    page.undecided = page.discards_running > 0;
    page.may_still_vanish = false;
  }
}

void Model::discard_cancelled(PageRange range) {
  for (auto it = pages_.lower_bound(range.first); it != pages_.end() && it->first < range.end(); ++it) {
    if (it->second.discards_running > 0) --it->second.discards_running;
  }
}

void Model::free_lazily(PageRange range) {
  for (auto it = pages_.lower_bound(range.first); it != pages_.end() && it->first < range.end(); ++it) {
    Page& page = it->second;
    if (page.discards_running > 0) --page.discards_running;
    page.undecided = page.may_still_vanish = true;
    page.settled.clear();
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
  it->second.words[offset] = word;
  if (it->second.undecided) it->second.settled[offset] = true;
  it->second.may_still_vanish = false;
}

void Model::forget_unsettled(Page& page) {
  std::erase_if(page.words, [&](const auto& entry) { return !page.settled.contains(entry.first); });
  page.undecided = page.may_still_vanish = false;
  page.settled.clear();
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
  const std::uint64_t expected = stored == page.words.end() ? 0 : stored->second;
  const bool open = page.undecided && !page.settled.contains(offset);
  if (word == expected) {
    const bool shows_old_contents = open && expected != 0;
    if (shows_old_contents && !page.may_still_vanish && page.discards_running == 0) {
      page.undecided = false;
      page.settled.clear();
    }
    return "";
  }
  if (open && word == 0) {
    // While a discard is running the page can still be seen either way by others; afterwards it has vanished.
    if (page.discards_running == 0) forget_unsettled(page);
    return "";
  }
  std::string text = "expected " + std::to_string(expected);
  if (open) text += " or 0";
  return text;
}

}  // namespace whimbrel::sim
