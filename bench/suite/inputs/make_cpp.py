"""Writes a C++ file that makes the compiler remember much: many distinct instantiations, no two alike."""

import sys

count = int(sys.argv[1])
print("#include <algorithm>\n#include <map>\n#include <string>\n#include <vector>\n")
for i in range(count):
    print(f"""struct Item{i} {{ int id; std::string name; double weight[{i % 7 + 1}]; }};
int use{i}(const std::vector<Item{i}>& items) {{
  std::map<int, Item{i}> index;
  for (const auto& item : items) index.emplace(item.id + {i}, item);
  std::vector<Item{i}> sorted(items);
  std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {{ return a.name < b.name; }});
  return static_cast<int>(index.size() + sorted.size());
}}""")
