#include "open_list.h"

#include <algorithm>
#include <vector>

#include "tests/vectors/replay/operation.h"

namespace vectors {

std::expected<OpenList, std::string> OpenList::parse(std::string_view text, const std::string& origin) {
  OpenList list;
  int number = 0;
  while (!text.empty()) {
    number++;
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::vector<std::string> words = split_words(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (words.empty() || words[0].starts_with("#")) continue;
    const std::string place = origin + ":" + std::to_string(number) + ": ";
    if (words.size() < 2) return std::unexpected(place + "an open vector needs a reason: 'NAME REASON'");
    std::string reason;
    for (std::size_t i = 1; i < words.size(); i++) reason += (i > 1 ? " " : "") + words[i];
    if (!list.reasons_.emplace(words[0], reason).second) return std::unexpected(place + words[0] + " is listed twice");
  }
  return list;
}

const std::string* OpenList::reason(const std::string& vector) const {
  const auto found = reasons_.find(vector);
  return found == reasons_.end() ? nullptr : &found->second;
}

std::string OpenList::unknown(const std::set<std::string>& known) const {
  for (const auto& [name, reason] : reasons_) {
    if (!known.contains(name)) return name;
  }
  return {};
}

}  // namespace vectors
