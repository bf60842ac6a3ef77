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
  struct Page {
    bool readable = true;
    bool writable = true;
    std::map<std::uint64_t, std::uint64_t> words;  // by offset; absent: zero
    // The words in `words` that are not in `settled` are either all as stored or all zero.
    bool undecided = false;
    bool may_still_vanish = false;  // undecided, and seeing the old contents does not settle it
    std::map<std::uint64_t, bool> settled;
    int discards_running = 0;
  };
  static void forget_unsettled(Page& page);

  std::map<PageIndex, Page> pages_;
  std::uint64_t reads_checked_ = 0;
};

}  // namespace whimbrel::sim
