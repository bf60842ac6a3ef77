#include "stacks/symbols.h"

#include <cxxabi.h>
#include <elfutils/libdwfl.h>

#include <charconv>
#include <cstdlib>
#include <string_view>

namespace whimbrel::stacks {
namespace {

int no_elf(Dwfl_Module*, void**, const char*, Dwarf_Addr, char**, Elf**) { return -1; }

// Separate debug files as Debian installs them. Nothing is fetched from the network: Symbols sees to that.
const Dwfl_Callbacks kCallbacks = {
    .find_elf = no_elf, .find_debuginfo = dwfl_standard_find_debuginfo, .section_address = dwfl_offline_section_address, .debuginfo_path = nullptr};

std::string last_part(std::string_view path) { return std::string(path.substr(path.rfind('/') + 1)); }

std::string readable(const char* name) {
  int status = 0;
  char* const text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  std::string out = status == 0 && text != nullptr ? text : name;
  std::free(text);
  // Versions of symbols are of no interest.
  if (const std::size_t at = out.find('@'); at != std::string::npos) out.resize(at);
  return out;
}

std::string hexadecimal(std::uint64_t n) {
  char digits[18];
  return {digits, std::to_chars(digits, digits + sizeof digits, n, 16).ptr};
}

}  // namespace

Symbols::~Symbols() {
  for (const auto& [file, object] : objects_) {
    if (object.dwfl != nullptr) dwfl_end(object.dwfl);
  }
}

const Symbols::Object& Symbols::object(std::uint32_t file) {
  const auto [at, fresh] = objects_.try_emplace(file);
  Object& object = at->second;
  if (!fresh || file == 0) return object;
  unsetenv("DEBUGINFOD_URLS");
  object.dwfl = dwfl_begin(&kCallbacks);
  if (object.dwfl == nullptr) return object;
  dwfl_report_begin(object.dwfl);
  const std::string& path = files_.path(file);
  object.module = dwfl_report_offline(object.dwfl, path.c_str(), path.c_str(), -1);
  dwfl_report_end(object.dwfl, nullptr, nullptr);
  GElf_Addr bias = 0;
  if (object.module != nullptr && dwfl_module_getelf(object.module, &bias) == nullptr) object.module = nullptr;
  object.bias = bias;
  return object;
}

const Place& Symbols::of(const Frame& frame) {
  const auto [at, fresh] = known_.try_emplace(frame);
  Place& place = at->second;
  if (!fresh) return place;
  place.object = last_part(files_.path(frame.file));
  place.address = frame.address;
  const Object& from = object(frame.file);
  if (from.module == nullptr) return place;
  const Dwarf_Addr address = frame.address + from.bias;
  GElf_Sym symbol;
  GElf_Off offset = 0;
  const char* const name = dwfl_module_addrinfo(from.module, address, &offset, &symbol, nullptr, nullptr, nullptr);
  // Without a full table the nearest name below may be that of another function.
  if (name != nullptr && (symbol.st_size == 0 || offset < symbol.st_size)) place.function = readable(name);
  if (Dwfl_Line* const line = dwfl_module_getsrc(from.module, address); line != nullptr) {
    int number = 0;
    if (const char* const source = dwfl_lineinfo(line, nullptr, &number, nullptr, nullptr, nullptr); source != nullptr && number > 0) {
      place.source = last_part(source);
      place.line = number;
    }
  }
  return place;
}

std::string describe(const Place& place) {
  std::string out = place.function;
  if (!place.source.empty()) {
    if (!out.empty()) out += ' ';
    return out + place.source + ':' + std::to_string(place.line);
  }
  if (place.object.empty()) return "code without a file";
  if (out.empty()) return place.object + "+0x" + hexadecimal(place.address);
  return out + ' ' + place.object;
}

}  // namespace whimbrel::stacks
