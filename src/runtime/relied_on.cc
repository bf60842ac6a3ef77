#include "runtime/relied_on.h"

#include <link.h>

#include <string_view>

namespace whimbrel {
namespace {

struct Visitor {
  void (*visit)(void*, PageRange);
  void* argument;
};

// Something of the library's own.
char g_own;

bool is_relied_on(const dl_phdr_info& object) noexcept {
  const auto own = reinterpret_cast<std::uintptr_t>(&g_own);
  for (int i = 0; i < object.dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object.dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const std::uintptr_t from = object.dlpi_addr + segment.p_vaddr;
    if (from <= own && own - from < segment.p_memsz) return true;
  }
  const std::string_view path = object.dlpi_name != nullptr ? object.dlpi_name : "";
  std::string_view name = path;
  if (const std::size_t slash = path.rfind('/'); slash != path.npos) name.remove_prefix(slash + 1);
  return name.starts_with("libc.so") || name.starts_with("libc-") || name.starts_with("ld-linux") ||
         name.starts_with("libpthread");
}

int visit_object(dl_phdr_info* object, std::size_t, void* visitor_pointer) {
  if (!is_relied_on(*object)) return 0;
  const auto* visitor = static_cast<const Visitor*>(visitor_pointer);
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) == 0) continue;
    const std::uintptr_t from = object->dlpi_addr + segment.p_vaddr;
    visitor->visit(visitor->argument,
                   PageRange::touching(VirtualAddress(from), VirtualAddress(from + segment.p_memsz)));
  }
  return 0;
}

}  // namespace

void for_each_relied_on(void (*visit)(void* argument, PageRange range), void* argument) noexcept {
  Visitor visitor{visit, argument};
  dl_iterate_phdr(visit_object, &visitor);
}

}  // namespace whimbrel
