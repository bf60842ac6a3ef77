// The calls of libc by which a program changes its users, groups and capabilities: libc's own, and the engine follows
// before they return.
#include <dlfcn.h>
#include <grp.h>
#include <sys/types.h>
#include <unistd.h>

#include "preload/program_engine.h"

namespace whimbrel {
namespace {

// Calls libc's function of that name with the engine told before and after.
template <class... Arguments>
int change(const char* name, Arguments... arguments) {
  // Looked up each time: such calls are rare, and this needs no state.
  const auto next = reinterpret_cast<int (*)(Arguments...)>(dlsym(RTLD_NEXT, name));
  if (next == nullptr) return -1;
  Engine* const engine = program_engine();
  if (engine != nullptr) engine->before_identity_change();
  const int result = next(arguments...);
  if (engine != nullptr) engine->after_identity_change();  // also after a failure: a part may have been done
  return result;
}

}  // namespace
}  // namespace whimbrel

#define WHIMBREL_EXPORT extern "C" __attribute__((visibility("default")))
using whimbrel::change;

WHIMBREL_EXPORT int setuid(uid_t id) noexcept { return change("setuid", id); }
WHIMBREL_EXPORT int setgid(gid_t id) noexcept { return change("setgid", id); }
WHIMBREL_EXPORT int seteuid(uid_t id) noexcept { return change("seteuid", id); }
WHIMBREL_EXPORT int setegid(gid_t id) noexcept { return change("setegid", id); }
WHIMBREL_EXPORT int setreuid(uid_t real, uid_t effective) noexcept { return change("setreuid", real, effective); }
WHIMBREL_EXPORT int setregid(gid_t real, gid_t effective) noexcept { return change("setregid", real, effective); }
WHIMBREL_EXPORT int setresuid(uid_t real, uid_t effective, uid_t saved) noexcept {
  return change("setresuid", real, effective, saved);
}
WHIMBREL_EXPORT int setresgid(gid_t real, gid_t effective, gid_t saved) noexcept {
  return change("setresgid", real, effective, saved);
}
WHIMBREL_EXPORT int setgroups(size_t count, const gid_t* groups) noexcept { return change("setgroups", count, groups); }
WHIMBREL_EXPORT int initgroups(const char* user, gid_t group) { return change("initgroups", user, group); }
WHIMBREL_EXPORT int capset(void* header, void* data) noexcept { return change("capset", header, data); }
