#include "linux/identity.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/prctl.h>
#include <sys/syscall.h>

#include <cstring>

#include "linux/sys.h"

namespace whimbrel {
namespace {

// The line that begins with `name`; null: none.
const char* line(const char* text, const char* name) noexcept {
  const std::size_t length = std::strlen(name);
  for (const char* at = text; *at != 0; ++at) {
    if (std::strncmp(at, name, length) == 0) return at + length;
    while (*at != 0 && *at != '\n') ++at;
    if (*at == 0) break;
  }
  return nullptr;
}

bool next_number(const char*& at, unsigned base, std::uint64_t* out) noexcept {
  while (*at == ' ' || *at == '\t') ++at;
  std::uint64_t value = 0;
  const char* first = at;
  for (;; ++at) {
    const unsigned digit = *at >= '0' && *at <= '9'   ? static_cast<unsigned>(*at - '0')
                           : *at >= 'a' && *at <= 'f' ? static_cast<unsigned>(*at - 'a' + 10)
                                                      : base;
    if (digit >= base) break;
    value = value * base + digit;
  }
  *out = value;
  return at != first;
}

bool three(const char* text, const char* name, std::uint32_t (&out)[3]) noexcept {
  const char* at = line(text, name);
  for (std::uint32_t& id : out) {
    std::uint64_t value = 0;
    if (at == nullptr || !next_number(at, 10, &value)) return false;
    id = static_cast<std::uint32_t>(value);
  }
  return true;
}

bool set_of_bits(const char* text, const char* name, std::uint64_t* out) noexcept {
  const char* at = line(text, name);
  return at != nullptr && next_number(at, 16, out);
}

void write_number(char*& at, unsigned value) noexcept {
  char digits[12];
  int n = 0;
  do digits[n++] = static_cast<char>('0' + value % 10);
  while ((value /= 10) != 0);
  while (n > 0) *at++ = digits[--n];
}

struct Capabilities {
  __user_cap_header_struct header{_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct half[2]{};

  bool get() noexcept { return sys::call(SYS_capget, sys::arg(&header), sys::arg(half)) == 0; }
  bool set() noexcept { return sys::call(SYS_capset, sys::arg(&header), sys::arg(half)) == 0; }
  // Keeps what the other sets have as well.
  void limit(const Identity& to) noexcept {
    for (unsigned i = 0; i < 2; ++i) {
      half[i].permitted &= static_cast<std::uint32_t>(to.permitted >> (32 * i));
      half[i].effective = half[i].permitted & static_cast<std::uint32_t>(to.effective >> (32 * i));
      half[i].inheritable &= static_cast<std::uint32_t>(to.inheritable >> (32 * i));
    }
  }
};

bool ids_are(long number, const std::uint32_t (&wanted)[3]) noexcept {
  std::uint32_t now[3] = {};
  return sys::call(number, sys::arg(&now[0]), sys::arg(&now[1]), sys::arg(&now[2])) == 0 &&
         std::memcmp(now, wanted, sizeof now) == 0;
}

// Both lists are sorted by the kernel.
bool other_groups_are(const Identity& id) noexcept {
  std::uint32_t now[Identity::kMostGroups];
  const long count = sys::call(SYS_getgroups, Identity::kMostGroups, sys::arg(now));
  return count == static_cast<long>(id.other_count) && std::memcmp(now, id.others, id.other_count * sizeof now[0]) == 0;
}

void take_groups(const Identity& id) noexcept {
  if (id.all_others) sys::call(SYS_setgroups, static_cast<long>(id.other_count), sys::arg(id.others));
  sys::call(SYS_setresgid, id.groups[0], id.groups[1], id.groups[2]);
}

}  // namespace

bool Identity::parse(const char* text, std::size_t length, Identity& out) noexcept {
  if (text[length] != 0) return false;
  const char* state = line(text, "State:");
  if (state == nullptr) return false;
  while (*state == ' ' || *state == '\t') ++state;
  if (*state == 'Z' || *state == 'X') return false;
  std::uint64_t no_new = 0;
  if (!three(text, "Uid:", out.users) || !three(text, "Gid:", out.groups)) return false;
  if (!set_of_bits(text, "CapInh:", &out.inheritable) || !set_of_bits(text, "CapPrm:", &out.permitted) ||
      !set_of_bits(text, "CapEff:", &out.effective)) {
    return false;
  }
  const char* flag = line(text, "NoNewPrivs:");
  out.no_new_privileges = flag != nullptr && next_number(flag, 10, &no_new) && no_new != 0;
  const char* list = line(text, "Groups:");
  if (list == nullptr) return false;
  out.other_count = 0;
  out.all_others = true;
  for (std::uint64_t group = 0; next_number(list, 10, &group);) {
    if (out.other_count == kMostGroups) {
      out.all_others = false;
      break;
    }
    out.others[out.other_count++] = static_cast<std::uint32_t>(group);
  }
  return true;
}

Result<void> Identity::of_thread(int tid, Identity& out) noexcept {
  char path[64] = "/proc/thread-self/../";  // not of "self": that is empty once the main thread has left
  char* end = path + std::strlen(path);
  write_number(end, static_cast<unsigned>(tid));
  std::memcpy(end, "/status", 8);
  char text[16384];  // 1.5 KiB and the groups
  const Result<std::size_t> got = sys::read_text(path, text, sizeof text);
  if (!got) return std::unexpected(got.error());
  if (!parse(text, *got, out)) return fail(Errc::kNotFound, 0, "/proc/thread-self/../status");
  return {};
}

bool Identity::same_as(const Identity& other) const noexcept {
  return std::memcmp(users, other.users, sizeof users) == 0 && std::memcmp(groups, other.groups, sizeof groups) == 0 &&
         inheritable == other.inheritable && permitted == other.permitted && effective == other.effective &&
         no_new_privileges == other.no_new_privileges && all_others == other.all_others &&
         other_count == other.other_count && std::memcmp(others, other.others, other_count * sizeof others[0]) == 0;
}

Result<void> Identity::adopt() const noexcept {
  // Capabilities survive the change of the user, so that they can be made exactly what they are to be.
  sys::call(SYS_prctl, PR_SET_KEEPCAPS, 1);
  take_groups(*this);
  sys::call(SYS_setresuid, users[0], users[1], users[2]);
  sys::call(SYS_prctl, PR_SET_KEEPCAPS, 0);
  Capabilities now;
  if (!now.get()) return fail(Errc::kNotPermitted, 0, "capget");
  now.limit(*this);
  if (!now.set()) return fail(Errc::kNotPermitted, 0, "capset");
  take_groups(*this);  // once more, for the case that the user had to come first: root's rights again
  if (no_new_privileges) sys::call(SYS_prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  if (!ids_are(SYS_getresgid, groups)) return fail(Errc::kNotPermitted, 0, "setresgid");
  if (!ids_are(SYS_getresuid, users)) return fail(Errc::kNotPermitted, 0, "setresuid");
  if (all_others && !other_groups_are(*this)) return fail(Errc::kNotPermitted, 0, "setgroups");
  return {};
}

}  // namespace whimbrel
