// The list of answers that may differ from the record, each with a reason.
//
//   reason extra-page: an invalidation reaches exactly its range; the kernel's reaches one page further.
//   reason real-zeros when no-zero-page: reading an empty page gives a real page on this host.
//   device-counts-one-extra-page:7 extra-page => ok cpages 1 faults 0 : v1
//   some-case:12 extra-page => *                  any answer, but not the recorded one
//   some-case:14 extra-page =>? ok                the recorded answer or this one
//   random-042:* host-without-huge-pages          everything after the first difference in this vector
//
// A reason with a condition (host.h) counts only where the condition holds; elsewhere its entries are as if not
// written. The list is exact: an entry that is not needed fails the run, so that it shrinks when the program under test
// gets better. What a program sees of its memory by itself can never be listed line by line, and neither can page
// contents that a device returns.
#pragma once

#include <expected>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "tests/vectors/replay/vector_file.h"

namespace vectors {

struct Deviation {
  std::string reason;          // key
  std::string answer;          // what stands after "=> " instead; "*" is anything
  bool may_be_absent = false;  // the recorded answer is fine too
  int list_line = 0;           // in the list, for messages
};

class Deviations {
 public:
  // `conditions` are those that hold on this host.
  [[nodiscard]] static std::expected<Deviations, std::string> parse(std::string_view text, const std::string& origin,
                                                                    const std::set<std::string>& conditions);

  // Every entry must speak of a line of these vectors that may deviate. Entries for vectors that are not among them
  // are left alone when `partial` is set (a run of part of the vectors). The error names all that are wrong.
  [[nodiscard]] std::expected<void, std::string> check(const std::vector<Vector>& vectors, bool partial) const;

  // The entry for a line of a vector, or null.
  [[nodiscard]] const Deviation* find(const std::string& vector, int line) const;
  // The entry for a whole vector, or null.
  [[nodiscard]] const Deviation* find_whole(const std::string& vector) const { return find(vector, kWholeVector); }

 private:
  static constexpr int kWholeVector = 0;

  std::string origin_;
  std::map<std::pair<std::string, int>, Deviation> by_place_;  // (vector, line)
};

}  // namespace vectors
