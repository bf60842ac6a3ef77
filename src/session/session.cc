#include "session/session.h"

#include <link.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <string_view>

#include "capi/complain.h"
#include "linux/guard_signal.h"
#include "linux/sys.h"
#include "runtime/relied_on.h"

using namespace whimbrel;
using capi::complain;

namespace whimbrel::session {
namespace {

SessionList g_list;

constexpr const char* kDoctor = "`whimbrel doctor` says what this machine allows";

// The call that failed, in words where it is the one that people meet.
const char* reason_of(const Error& error) noexcept {
  const std::string_view where = error.where;
  if (where.find("userfaultfd") != where.npos) return "userfaultfd is not to be had here";
  return where.empty() ? errc_name(error.code) : error.where;
}

int find_preload(dl_phdr_info* object, std::size_t, void* found) {
  const std::string_view name = object->dlpi_name != nullptr ? object->dlpi_name : "";
  if (name.find("libwhimbrel-preload") != name.npos) *static_cast<bool*>(found) = true;
  return 0;
}

// Its engine manages all memory of the process, ours included; two may not move the same pages.
bool runs_under_whimbrel_run() noexcept {
  bool found = false;
  dl_iterate_phdr(find_preload, &found);
  return found;
}

}  // namespace

SessionList& session_list() noexcept { return g_list; }

}  // namespace whimbrel::session

using session::session_list;

namespace {

// How to manage memory: the environment may ask for less than the best.
int choose_rung(Settings& settings) noexcept {
  const char* const asked = std::getenv(kEnvRung);
  if (asked == nullptr || *asked == 0) return 0;
  const std::string_view name = asked;
  if (name == "userfaultfd") {
    settings.rung = Settings::Rung::kUserfaultfd;
  } else if (name == "guarded") {
    settings.rung = Settings::Rung::kGuarded;
  } else {
    return capi::complain_because(EINVAL, "whimbrel_session_open", "no such WHIMBREL_RUNG", "\"userfaultfd\", \"guarded\", or unset it");
  }
  return 0;
}

// What `whimbrel watch` wants to see. What it names and is not there is not looked at.
void take_part_in_watch(Settings& settings) noexcept {
  const char* const watch = secure_getenv(kEnvWatch);
  if (watch == nullptr || std::strlen(watch) + std::strlen(kEventsSuffix) >= sizeof settings.events) return;
  std::snprintf(settings.stats, sizeof settings.stats, "%s", watch);
  std::snprintf(settings.events, sizeof settings.events, "%s%s", watch, kEventsSuffix);
}

int check_budget(const char* what, std::uint64_t ram, std::uint64_t total) noexcept {
  if (ram == 0 && total == 0) return complain(EINVAL, what, "set ram_bytes, total_bytes or both");
  for (const std::uint64_t limit : {ram, total}) {
    if (limit != 0 && limit < whimbrel_session::kSmallestBudget) {
      return capi::complain_because(EINVAL, what, "a budget below 2 MiB is no room to work in", "at least 2 MiB");
    }
  }
  if (ram != 0 && total != 0 && total < ram) {
    return capi::complain_because(EINVAL, what, "total_bytes is below ram_bytes, which is a part of it",
                                  "make it larger, or leave one of them 0");
  }
  return 0;
}

// What stands behind the device process is tried out at once: a server that is not there is a mistake to hear of now.
int start_device_process(const char* what, const char* device, device_process::DeviceProcess& process) {
  if (!needs_device_process(device, built_in_devices())) return 0;
  std::string problem, advice;
  if (!process.is_running() && !process.start(true, &problem, &advice)) return capi::complain_because(ENODEV, what, problem.c_str(), advice.c_str());
  SpecMessage message;
  const Result<void> good = try_device_spec(device, built_in_devices(), process.address().c_str(), message);
  if (good) return 0;
  problem = message.c_str();
  advice = "look at the server; docs/remote-memory.md shows how to set one up";
  if (const std::size_t next = problem.find("; next: "); next != problem.npos) {
    advice = problem.substr(next + 8);
    problem.erase(next);
  }
  return capi::complain_because(capi::errno_of(good.error()), what, problem.c_str(), advice.c_str());
}

// As far as the text of it goes.
int check_device(const char* what, const char* device) noexcept {
  if (std::strlen(device) >= sizeof Settings::device) return capi::complain_because(EINVAL, what, "too long a device", "at most 1279 characters");
  SpecMessage message;
  if (check_device_spec(device, built_in_devices(), message)) return 0;
  return capi::complain_because(EINVAL, what, message.c_str(), "a device: ram, lz4, zstd, file:PATH, nbd:URI, or a chain or mirror of these");
}

}  // namespace

int whimbrel_session::open(const whimbrel_session_options& options, whimbrel_session** out) noexcept {
  constexpr const char* kWhat = "whimbrel_session_open";
  if (const int bad = check_budget(kWhat, options.ram_bytes, options.total_bytes); bad != 0) return bad;
  Settings settings;
  settings.ram_bytes = options.ram_bytes;
  settings.total_bytes = options.total_bytes;
  settings.whole_process = false;
  if (const int bad = choose_rung(settings); bad != 0) return bad;
  take_part_in_watch(settings);
  const char* device = options.device != nullptr ? options.device : "zstd";
  if (const int bad = check_device(kWhat, device); bad != 0) return bad;
  std::strcpy(settings.device, device);
  if (session::runs_under_whimbrel_run()) {
    return capi::complain_because(EBUSY, kWhat,
                                  "this program runs under `whimbrel run`, whose budget covers all its memory",
                                  "start it without `whimbrel run`");
  }

  device_process::DeviceProcess device_process;
  if (const int bad = start_device_process(kWhat, device, device_process); bad != 0) return bad;
  std::snprintf(settings.device_process, sizeof settings.device_process, "%s", device_process.address().c_str());

  session::SessionList& list = session_list();
  MutexLock hold(list.mutex);
  auto* const room = std::find(std::begin(list.open), std::end(list.open), nullptr);
  if (room == std::end(list.open)) return complain(EMFILE, "whimbrel_session_open: 16 sessions are open", "close one");
  if (!list.has_fork_handlers) {
    if (pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
      return complain(ENOMEM, "whimbrel_session_open: no room for fork handlers");
    }
    list.has_fork_handlers = true;
  }
  // Pages of its own: engine threads use it, so it must not be on a heap that somebody may adopt.
  const Result<void*> memory =
      sys::mmap(nullptr, sizeof(whimbrel_session), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  if (!memory) return complain(memory.error(), kWhat);
  auto* const made = ::new (*memory) whimbrel_session();
  made->device_process_ = std::move(device_process);
  settings.session = static_cast<std::uint32_t>(room - std::begin(list.open)) + 1;
  made->ram_bytes_.store(options.ram_bytes);
  made->total_bytes_.store(options.total_bytes);
  for_each_relied_on([](void* engine, PageRange range) { static_cast<Engine*>(engine)->forbid(range); },
                     &made->engine_);
  Result<void> started = made->engine_.start_session(settings);
  if (started && made->engine_.guarded() != nullptr) {
    started = guard_signal::install();
    if (!started) (void)made->engine_.stop();
  }
  if (!started) {
    char said[248] = "";
    const bool told = made->engine_.last_said(said) != 0;
    const int code = capi::errno_of(started.error());
    destroy(made);
    return told ? capi::complain_because(code, kWhat, said, session::kDoctor)
                : capi::complain_because(code, kWhat, session::reason_of(started.error()), session::kDoctor);
  }
  *room = made;
  *out = made;
  return 0;
}

void whimbrel_session::destroy(whimbrel_session* session) noexcept {
  session->~whimbrel_session();
  sys::munmap(session, sizeof(whimbrel_session));
}

int whimbrel_session::close(whimbrel_session* session) noexcept {
  session::SessionList& list = session_list();
  {
    MutexLock hold(session->mutex_);
    if (session->ledger_.pieces() != 0) {
      return complain(EBUSY, "whimbrel_session_close: memory of the session is still allocated",
                      "whimbrel_free() it first");
    }
  }
  for (;;) {
    PageRange adopted;
    {
      MutexLock hold(session->mutex_);
      adopted = session->ledger_.any_adopted();
    }
    if (adopted.empty()) break;
    if (const int bad = session->release(adopted); bad != 0) return bad;
  }
  MutexLock hold(list.mutex);
  const bool has_own_arenas = session->engine_.guarded() == nullptr;  // guarded ones go with their engine
  const Result<void> stopped = session->engine_.stop();
  const bool has_ended = !stopped && stopped.error().code == Errc::kGone;
  if (!stopped && !has_ended) return complain(stopped.error(), "whimbrel_session_close");
  if (has_own_arenas) {
    MutexLock hold_it(session->mutex_);
    session->ledger_.for_each_arena([](PageRange arena) { unmap_arena(arena); });
  }
  std::replace(std::begin(list.open), std::end(list.open), session, static_cast<whimbrel_session*>(nullptr));
  if (!has_ended) destroy(session);  // else its threads' last words are in there
  return 0;
}

Result<HintResult> whimbrel_session::ask(HintKind kind, PageRange range, std::span<std::uint32_t> report) noexcept {
  const Result<HintQueue::Ticket> ticket = engine_.hints().submit(kind, range);
  if (!ticket) return std::unexpected(ticket.error());
  const Result<HintResult> result = engine_.hints().wait(*ticket, -1, report);
  if (result && result->failed && kind != HintKind::kPin) return std::unexpected(result->error);
  return result;
}

int whimbrel_session::set_budget(std::uint64_t ram, std::uint64_t total) noexcept {
  if (const int bad = check_budget("whimbrel_session_set_budget", ram, total); bad != 0) return bad;
  ram_bytes_.store(ram);
  total_bytes_.store(total);
  engine_.set_budget(ram, total);
  return 0;
}

int whimbrel_session::set_device(const char* device) noexcept {
  constexpr const char* kWhat = "whimbrel_session_set_device";
  if (const int bad = check_device(kWhat, device); bad != 0) return bad;
  MutexLock hold(mutex_);
  if (const int bad = start_device_process(kWhat, device, device_process_); bad != 0) return bad;
  const Result<void> done = engine_.set_device(device, device_process_.address().c_str());
  if (done) return 0;
  if (done.error().code == Errc::kGone) return complain(ESRCH, kWhat, "the session's engine has ended");
  char said[248] = "";
  (void)engine_.last_said(said);
  return capi::complain_because(EIO, kWhat, said, "the device stays what it was, and nothing is lost: whimbrel_session_notice() has the reason");
}

void whimbrel_session::fill_stats(whimbrel_session_stats* stats) noexcept {
  {
    MutexLock hold(mutex_);
    stats->allocated_bytes = ledger_.allocated().bytes();
    stats->adopted_bytes = ledger_.adopted().bytes();
  }
  stats->ram_limit_bytes = ram_bytes_.load();
  stats->total_limit_bytes = total_bytes_.load();
  const PagerStats& pager = engine_.statistics().pager;
  const DeviceStats device = engine_.device_stats();
  stats->resident_pages = engine_.pager().resident().raw();
  stats->resident_limit_pages = pager.resident_limit_pages.load();
  stats->peak_resident_pages = pager.peak_resident_pages.load();
  stats->stored_pages = device.stored_pages;
  stats->compressed_bytes = device.compressed_bytes;
  stats->held_bytes = device.held_bytes;
  stats->total_bytes = pager.total_bytes.load();
  stats->pages_out = pager.pages_out.load();
  stats->pages_home = pager.pages_home.load();
  stats->faults = pager.faults.load();
  stats->fresh_faults = pager.holes.load();
  stats->wait_ns = pager.wait_ns.load();
  stats->over_limit = pager.over_limit.load();
  stats->refused_pages = pager.refused_pages.load();
  stats->device_errors = pager.device_errors.load();
  stats->load_errors = pager.load_errors.load();
  stats->leaving_pages = engine_.statistics().leaving_pages.load();
}
