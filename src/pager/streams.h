// Streams: from the places where a program touches missing pages, how many pages to bring at a time.
//
// A touch next to what was brought for an earlier one continues its stream, upwards or downwards, and the window climbs
// a ladder (1, 8, 16, 64, 512 pages). A touch that fits no stream starts one with a single page. So lone touches get
// single pages, and it takes two neighbours to make a stream. Streams that break off after a large window show waste;
// while much is wasted, windows stay short.
//
// Not thread-safe: belongs to the fault thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "mm/address.h"

namespace whimbrel {

class Streams {
 public:
  struct Ladder {
    std::array<std::uint16_t, 5> pages{1, 8, 16, 64, 64};
  };
  struct Window {
    PageRange range;  // contains the page touched
    bool backward = false;
    bool sequential = false;  // continues a stream
  };

  explicit Streams(const Ladder& ladder) noexcept : ladder_(ladder) {}

  // What to bring for a touch at `page`, never more than `most` pages.
  [[nodiscard]] Window touch(PageIndex page, PageCount most) noexcept;
  // What was really brought for the last touch() (it was cut by a border, a page in the way, a lack of room).
  void brought(const Window& window, PageRange range) noexcept;

  // Since the last call: windows whose stream went on, and pages brought by windows whose stream did not.
  struct Verdict {
    std::uint64_t hits = 0;
    std::uint64_t waste_pages = 0;
  };
  [[nodiscard]] Verdict take_verdict() noexcept;
  void reset() noexcept;

 private:
  struct Stream {
    PageRange last;  // what the last touch brought; empty: unused
    std::uint8_t rung = 0;
    bool backward = false;
    std::uint64_t used_at = 0;
  };
  static constexpr std::size_t kStreams = 16;

  [[nodiscard]] Stream* find(PageIndex page, bool* backward) noexcept;
  [[nodiscard]] Stream* replace_oldest() noexcept;
  void judge(bool hit, std::uint64_t pages) noexcept;

  const Ladder ladder_;
  std::array<Stream, kStreams> streams_{};
  Stream* current_ = nullptr;
  std::uint64_t touches_ = 0;
  Verdict verdict_;
  // Share of pages brought ahead that were wasted, 0..256, over the last few windows.
  std::uint32_t waste_share_ = 0;
};

}  // namespace whimbrel
