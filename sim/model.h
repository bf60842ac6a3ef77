// Model: what the program's memory would hold without any engine. A map of words and the few rules of the system calls,
// simple enough to believe; every read of the simulated program is compared with it.
//
// Contents are 8-byte words at aligned addresses. Where the kernel itself leaves the answer open the model accepts both
// and remembers what was seen:
//   MADV_FREE       a page keeps its contents or reads as zeros, all of it at once, until it is written
//   a discard that has begun and not ended may have happened already
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "mm/address.h"

namespace whimbrel::sim {

class Model {
 public:
  void map(PageRange range, bool readable, bool writable);
  void unmap(PageRange range);
  void protect(PageRange range, bool readable, bool writable);
  // keep_source: the old place stays mapped and is empty then.
  void move(PageRange from, PageIndex to, bool keep_source);

  void discard_begins(PageRange range);
  void discard_ends(PageRange range);  // the pages are zero now
  void discard_cancelled(PageRange range);
  void free_lazily(PageRange range);

  [[nodiscard]] bool allows(VirtualAddress address, bool write) const;
  void write(VirtualAddress address, std::uint64_t word);
  // Empty when `word` is a right answer now; else what was expected.
  [[nodiscard]] std::string check_read(VirtualAddress address, std::uint64_t word);
  // The addresses of all words that hold something, ascending, for a last look at them.
  [[nodiscard]] std::vector<VirtualAddress> written() const;
  [[nodiscard]] std::size_t mapped_pages() const { return pages_.size(); }
  [[nodiscard]] const std::uint64_t& reads_checked() const { return reads_checked_; }

 private:
  struct Word {
    std::uint64_t value = 0;
    std::uint64_t born = 0;  // page's time of the write
  };
  // A page's time counts the discards that left something open. A word that was born before such a discard may be gone;
  // what a discard takes, it takes with everything older.
  struct Page {
    bool readable = true;
    bool writable = true;
    std::map<std::uint64_t, Word> words;  // by offset; absent: zero
    std::uint64_t now = 1;
    std::uint64_t open_until = 0;   // words born at or before this time are as stored, or gone
    bool may_still_vanish = false;  // lazily freed and not written since: seeing the old contents settles nothing
    int discards_running = 0;
  };
  static void leave_open(Page& page);

  std::map<PageIndex, Page> pages_;
  std::uint64_t reads_checked_ = 0;
};

}  // namespace whimbrel::sim
