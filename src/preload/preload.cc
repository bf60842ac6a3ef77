// The library that `whimbrel run` loads into every program: starts the engine and carries it over forks.
//
// It exports the calls by which programs change their rights (identity_calls.cc) and __register_atfork, through which every pthread_atfork() in the process comes: so our handlers are
// registered before anybody else's, which makes our prepare handler the last and our child handler the first to run.
#include <dlfcn.h>
#include <link.h>

#include <cstring>
#include <new>
#include <string_view>

#include "preload/libc_walk.h"
#include "preload/program_engine.h"

extern "C" {
using AtforkHandler = void (*)();
int __register_atfork(AtforkHandler prepare, AtforkHandler parent, AtforkHandler child, void* dso)
    __attribute__((visibility("default")));
extern void* __dso_handle __attribute__((visibility("hidden")));
}

namespace whimbrel {

namespace {

// Static memory, constructed by hand and never destroyed: engine threads use it until the kernel ends them.
alignas(Engine) std::byte g_storage[sizeof(Engine)];
Engine* g_engine = nullptr;  // null: this process is left alone

void before_fork() {
  if (g_engine == nullptr) return;
  g_engine->prepare_fork();
  if (g_engine->is_moving()) touch_what_fork_touches();
}

void after_fork_in_parent() {
  if (g_engine != nullptr) g_engine->after_fork_in_parent();
}

void after_fork_in_child() {
  if (g_engine != nullptr) g_engine->after_fork_in_child();
}

LibcFork g_libc_fork = nullptr;

using RegisterAtfork = int (*)(AtforkHandler, AtforkHandler, AtforkHandler, void*);
RegisterAtfork g_register_atfork = nullptr;

// Ours, before any other. An allocator may come here while the loader is still at work, before our constructor.
RegisterAtfork libc_register_atfork() {
  if (g_register_atfork == nullptr) {
    g_register_atfork = reinterpret_cast<RegisterAtfork>(dlsym(RTLD_NEXT, "__register_atfork"));
    if (g_register_atfork == nullptr) return nullptr;
    if (g_register_atfork(before_fork, after_fork_in_parent, after_fork_in_child, &__dso_handle) != 0) return nullptr;
  }
  return g_register_atfork;
}

bool is_relied_on(const dl_phdr_info& object) {
  const auto own = reinterpret_cast<std::uintptr_t>(&g_storage);
  for (int i = 0; i < object.dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object.dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const std::uintptr_t from = object.dlpi_addr + segment.p_vaddr;
    if (from <= own && own - from < segment.p_memsz) return true;
  }
  const std::string_view path = object.dlpi_name != nullptr ? object.dlpi_name : "";
  const std::string_view name = path.substr(path.rfind('/') == path.npos ? 0 : path.rfind('/') + 1);
  return name.starts_with("libc.so") || name.starts_with("libc-") || name.starts_with("ld-linux") ||
         name.starts_with("libpthread");
}

// Data of this library, of libc and of the loader: engine threads use it, so it must never be away. By address, since
// its anonymous part can merge with neighbours in the process's map.
int forbid_data(dl_phdr_info* object, std::size_t, void*) {
  if (!is_relied_on(*object)) return 0;
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& segment = object->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD || (segment.p_flags & PF_W) == 0) continue;
    const std::uintptr_t from = object->dlpi_addr + segment.p_vaddr;
    g_engine->forbid(PageRange::touching(VirtualAddress(from), VirtualAddress(from + segment.p_memsz)));
  }
  return 0;
}

// The environment comes as an argument: getenv() is not ready yet when constructors of this kind run.
__attribute__((constructor)) void start(int, char**, char** environment) {
  const Settings settings = Settings::from_environment(environment);
  if (!settings.active()) return;
  if (libc_register_atfork() == nullptr) return;  // without it a forked child would read zeros
  prepare_libc_walk();
  (void)libc_raw_fork();  // it may be called from signal handlers
  g_engine = ::new (static_cast<void*>(g_storage)) Engine();
  dl_iterate_phdr(forbid_data, nullptr);
  if (!g_engine->start(settings)) g_engine = nullptr;
}

}  // namespace

Engine* program_engine() noexcept { return g_engine; }

LibcFork libc_raw_fork() noexcept {
  if (g_libc_fork == nullptr) g_libc_fork = reinterpret_cast<LibcFork>(dlsym(RTLD_NEXT, "_Fork"));
  return g_libc_fork;
}

}  // namespace whimbrel

int __register_atfork(AtforkHandler prepare, AtforkHandler parent, AtforkHandler child, void* dso) {
  const whimbrel::RegisterAtfork next = whimbrel::libc_register_atfork();
  return next == nullptr ? 12 /* ENOMEM */ : next(prepare, parent, child, dso);
}
