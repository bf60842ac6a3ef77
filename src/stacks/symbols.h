// Names for places in code: function, source file and line, from symbol tables and debug information (libdw).
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "stacks/process_image.h"

struct Dwfl;
struct Dwfl_Module;

namespace whimbrel::stacks {

struct Place {
  std::string function;  // "walk" or "std::vector<int>::push_back(int&&)"; empty: not known
  std::string source;    // "matrix.c"; empty: no debug information
  int line = 0;
  std::string object;    // "libc.so.6"; empty: code that belongs to no file, such as a compiler's at run time
  std::uint64_t address = 0;  // in the object; for those without a name
};

class Symbols {
 public:
  explicit Symbols(const FileNames& files) : files_(files) {}
  ~Symbols();
  Symbols(const Symbols&) = delete;
  Symbols& operator=(const Symbols&) = delete;

  [[nodiscard]] const Place& of(const Frame& frame);

 private:
  struct Object {
    Dwfl* dwfl = nullptr;
    Dwfl_Module* module = nullptr;
    std::uint64_t bias = 0;
  };
  const Object& object(std::uint32_t file);

  const FileNames& files_;
  std::map<std::uint32_t, Object> objects_;
  std::map<Frame, Place> known_;
};

// "walk matrix.c:42", "memmove libc.so.6", "libfoo.so+0x1234".
[[nodiscard]] std::string describe(const Place& place);

}  // namespace whimbrel::stacks
