// The vectors that do not give the recorded answers yet: one name a line, then a short reason; '#' starts a comment.
#pragma once

#include <expected>
#include <map>
#include <set>
#include <string>
#include <string_view>

namespace vectors {

class OpenList {
 public:
  // The error names the line and what is wrong with it. `origin` is the file's name, for messages.
  [[nodiscard]] static std::expected<OpenList, std::string> parse(std::string_view text, const std::string& origin);

  // Why the vector is open; null when it is not listed.
  [[nodiscard]] const std::string* reason(const std::string& vector) const;
  // A name that is not among `known`; empty when there is none. Names outlive the vectors they were about otherwise.
  [[nodiscard]] std::string unknown(const std::set<std::string>& known) const;

 private:
  std::map<std::string, std::string> reasons_;
};

}  // namespace vectors
