// The library that `whimbrel run` loads into every program: starts the engine and carries it over forks.
//
// It exports the calls by which programs change their rights (identity_calls.cc) and __register_atfork, through which every pthread_atfork() in the process comes: so our handlers are
// registered before anybody else's, which makes our prepare handler the last and our child handler the first to run.
#include <dlfcn.h>

#include <cstring>
#include <new>

#include "preload/libc_walk.h"
#include "preload/program_engine.h"
#include "runtime/relied_on.h"

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

// The environment comes as an argument: getenv() is not ready yet when constructors of this kind run.
__attribute__((constructor)) void start(int, char**, char** environment) {
  const Settings settings = Settings::from_environment(environment);
  if (!settings.active()) return;
  if (libc_register_atfork() == nullptr) return;  // without it a forked child would read zeros
  prepare_libc_walk();
  (void)libc_raw_fork();  // it may be called from signal handlers
  g_engine = ::new (static_cast<void*>(g_storage)) Engine();
  for_each_relied_on([](void* engine, PageRange range) { static_cast<Engine*>(engine)->forbid(range); }, g_engine);
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
