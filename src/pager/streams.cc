#include "pager/streams.h"

#include <algorithm>

namespace whimbrel {
namespace {

// Above this share of waste (of 256), windows climb to the second rung only.
constexpr std::uint32_t kTooMuchWaste = 160;

}  // namespace

Streams::Stream* Streams::find(PageIndex page, bool* backward) noexcept {
  for (Stream& s : streams_) {
    if (s.last.empty()) continue;
    // A little ahead of the edge counts too: strided readers skip some pages at each border. Every second page is a stream
    // from the start.
    const PageCount slack(std::clamp<std::uint64_t>(s.last.count.raw(), 2, 16));
    if (s.last.end() <= page && page < s.last.end() + slack && (!s.backward || s.rung == 0)) {
      *backward = false;
      return &s;
    }
    const bool room = s.last.first.raw() > slack.raw();
    if (room && page < s.last.first && s.last.first - slack <= page && (s.backward || s.rung == 0)) {
      *backward = true;
      return &s;
    }
  }
  return nullptr;
}

Streams::Stream* Streams::replace_oldest() noexcept {
  Stream* oldest = &streams_[0];
  for (Stream& s : streams_) {
    if (s.used_at < oldest->used_at) oldest = &s;
  }
  // Its last window was not walked to the end, as far as anybody can tell.
  if (oldest->rung != 0 && !oldest->last.empty()) judge(false, oldest->last.count.raw() - 1);
  return oldest;
}

void Streams::judge(bool hit, std::uint64_t pages) noexcept {
  if (hit) {
    ++verdict_.hits;
  } else {
    verdict_.waste_pages += pages;
  }
  waste_share_ = (waste_share_ * 15 + (hit ? 0u : 256u)) / 16;
}

Streams::Window Streams::touch(PageIndex page, PageCount most) noexcept {
  ++touches_;
  bool backward = false;
  Stream* s = find(page, &backward);
  const bool sequential = s != nullptr;
  if (sequential) {
    if (s->rung != 0) judge(true, 0);
    const std::size_t top = waste_share_ > kTooMuchWaste ? 1 : ladder_.pages.size() - 1;
    s->rung = static_cast<std::uint8_t>(std::min<std::size_t>(s->rung + 1u, top));
  } else {
    s = replace_oldest();
    s->rung = 0;
  }
  s->backward = backward;
  s->used_at = touches_;
  current_ = s;
  const std::uint64_t pages =
      std::clamp<std::uint64_t>(ladder_.pages[s->rung], 1, std::max<std::uint64_t>(most.raw(), 1));
  Window window{{page, PageCount(pages)}, backward, sequential};
  if (backward) {
    const std::uint64_t below = std::min(pages - 1, page.raw());
    window.range = PageRange::between(page - PageCount(below), page + PageCount(1));
  }
  s->last = window.range;
  return window;
}

void Streams::brought(const Window& window, PageRange range) noexcept {
  if (current_ == nullptr || current_->last != window.range || range.empty()) return;
  current_->last = range;
}

Streams::Verdict Streams::take_verdict() noexcept {
  const Verdict verdict = verdict_;
  verdict_ = Verdict();
  return verdict;
}

void Streams::reset() noexcept {
  streams_ = {};
  current_ = nullptr;
  verdict_ = Verdict();
  waste_share_ = 0;
}

}  // namespace whimbrel
