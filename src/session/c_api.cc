// The C interface of sessions: arguments looked over, results put into its shapes.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "capi/complain.h"
#include "session/session.h"

using namespace whimbrel;
using capi::complain;

namespace {

constexpr const char* kNoSession = "no session";

// The pages that [start, start + bytes) touches; empty: it is empty or wraps.
PageRange pages_of(const void* start, std::size_t bytes) noexcept {
  const auto from = reinterpret_cast<std::uint64_t>(start);
  if (bytes == 0 || from + bytes < from || (from + bytes) >> kUserAddressBits != 0) return {};
  return PageRange::touching(VirtualAddress(from), VirtualAddress(from + bytes));
}

// The pages that lie within it.
PageRange pages_within(const void* start, std::size_t bytes) noexcept {
  const auto from = reinterpret_cast<std::uint64_t>(start);
  if (bytes == 0 || from + bytes < from || (from + bytes) >> kUserAddressBits != 0) return {};
  return PageRange::between(PageIndex((from + kPageSize - 1) >> kPageShift), PageIndex((from + bytes) >> kPageShift));
}

int not_ours(const char* what) noexcept {
  return capi::complain_because(EINVAL, what, "empty, or not within one piece of memory of this session",
                                "whimbrel_allocate() or whimbrel_adopt() it");
}

// 0, or the complaint about a range.
int check(whimbrel_session* session, const char* what, PageRange range) noexcept {
  if (session == nullptr) return capi::complain_because(EINVAL, what, kNoSession, "whimbrel_session_open()");
  return !range.empty() && session->owns(range) ? 0 : not_ours(what);
}

void fill(whimbrel_outcome* outcome, std::uint64_t asked, const HintResult& result) noexcept {
  if (outcome == nullptr) return;
  static_assert(WHIMBREL_REFUSED_PINNED == HintResult::kPinned && WHIMBREL_REFUSED_BUSY == HintResult::kBusy &&
                WHIMBREL_REFUSED_DEVICE_FULL == HintResult::kDeviceFull &&
                WHIMBREL_REFUSED_OVER_BUDGET == HintResult::kOverBudget &&
                WHIMBREL_REFUSED_NOT_MANAGED == HintResult::kNotManaged &&
                WHIMBREL_REFUSED_DEVICE_FAILED == HintResult::kDeviceFailed);
  *outcome = {};
  outcome->asked = asked;
  // Pages go their ways while they are looked at one after the other; the sum is kept, what moved comes first.
  outcome->moved = std::min(result.moved, asked);
  outcome->refused = std::min(result.refused, asked - outcome->moved);
  outcome->already = std::min(result.already, asked - outcome->moved - outcome->refused);
  outcome->empty = asked - outcome->moved - outcome->refused - outcome->already;
  outcome->reasons = outcome->refused != 0 ? result.reasons : 0;
}

int move_now(whimbrel_session* session, const char* what, HintKind kind, PageRange range,
             whimbrel_outcome* outcome) noexcept {
  if (const int bad = check(session, what, range); bad != 0) return bad;
  const Result<HintResult> result = session->ask(kind, range);
  if (!result) return complain(result.error(), what);
  fill(outcome, range.count.raw(), *result);
  return 0;
}

int start(whimbrel_session* session, const char* what, HintKind kind, PageRange range,
          whimbrel_request* request) noexcept {
  if (const int bad = check(session, what, range); bad != 0) return bad;
  if (request == nullptr) return complain(EINVAL, what, "give a place for the request");
  const Result<HintQueue::Ticket> ticket = session->engine().hints().submit(kind, range, true);
  if (!ticket) return complain(ticket.error(), what, "whimbrel_wait() or whimbrel_forget() an earlier request");
  *request = {session, *ticket, range.count.raw()};
  return 0;
}

}  // namespace

// ---- sessions
// ----------------------------------------------------------------------------------------------------------

int whimbrel_session_open(const whimbrel_session_options* given, whimbrel_session** session) {
  constexpr const char* kWhat = "whimbrel_session_open";
  if (given == nullptr || session == nullptr)
    return complain(EINVAL, "whimbrel_session_open: options and session must not be null");
  if (given->struct_size < offsetof(whimbrel_session_options, device)) {
    return capi::complain_because(EINVAL, kWhat, "options.struct_size",
                                  "set it to sizeof(struct whimbrel_session_options)");
  }
  whimbrel_session_options options{};
  std::memcpy(&options, given, std::min(sizeof options, given->struct_size));
  if (options.flags != 0) return complain(EINVAL, "whimbrel_session_open: options.flags must be 0");
  return whimbrel_session::open(options, session);
}

int whimbrel_session_close(whimbrel_session* session) {
  return session == nullptr ? 0 : whimbrel_session::close(session);
}

int whimbrel_session_set_budget(whimbrel_session* session, std::uint64_t ram_bytes, std::uint64_t total_bytes) {
  if (session == nullptr) return capi::complain_because(EINVAL, "whimbrel_session_set_budget", kNoSession);
  return session->set_budget(ram_bytes, total_bytes);
}

int whimbrel_session_set_device(whimbrel_session* session, const char* device) {
  constexpr const char* kWhat = "whimbrel_session_set_device";
  if (session == nullptr) return capi::complain_because(EINVAL, kWhat, kNoSession);
  if (device == nullptr) return complain(EINVAL, kWhat, "a device must be named");
  return session->set_device(device);
}

int whimbrel_session_get_stats(whimbrel_session* session, whimbrel_session_stats* stats) {
  constexpr const char* kWhat = "whimbrel_session_get_stats";
  if (session == nullptr) return capi::complain_because(EINVAL, kWhat, kNoSession);
  if (stats == nullptr || stats->struct_size < sizeof(std::size_t)) {
    return capi::complain_because(EINVAL, kWhat, "struct_size", "set it to sizeof(struct whimbrel_session_stats)");
  }
  whimbrel_session_stats now{};
  now.struct_size = stats->struct_size;
  session->fill_stats(&now);
  std::memcpy(stats, &now, std::min(sizeof now, stats->struct_size));
  return 0;
}

const char* whimbrel_session_rung(whimbrel_session* session) { return session == nullptr ? nullptr : session->rung(); }

int whimbrel_session_notice(whimbrel_session* session, char* text, std::size_t room) {
  if (session == nullptr || text == nullptr || room == 0)
    return complain(EINVAL, "whimbrel_session_notice: no place for the text");
  char said[248];
  const std::uint32_t count = session->engine().last_said(said);
  const std::size_t length = std::min(std::strlen(said), room - 1);
  std::memcpy(text, said, length);
  text[length] = 0;
  return static_cast<int>(count);
}

// ---- memory
// ------------------------------------------------------------------------------------------------------------

int whimbrel_allocate(whimbrel_session* session, std::size_t bytes, void** memory) {
  if (session == nullptr || memory == nullptr)
    return complain(EINVAL, "whimbrel_allocate: session and memory must not be null");
  return session->allocate(bytes, memory);
}

void whimbrel_free(whimbrel_session* session, void* memory) {
  if (memory != nullptr) session->free(memory);
}

std::size_t whimbrel_allocated_size(whimbrel_session* session, const void* memory) {
  return session == nullptr ? 0 : session->size_of(memory);
}

int whimbrel_adopt(whimbrel_session* session, void* memory, std::size_t bytes) {
  if (session == nullptr) return capi::complain_because(EINVAL, "whimbrel_adopt", kNoSession);
  const PageRange range = pages_within(memory, bytes);
  if (range.empty()) return complain(EINVAL, "whimbrel_adopt: no whole page lies within the range");
  return session->adopt(range);
}

int whimbrel_release(whimbrel_session* session, void* memory, std::size_t bytes) {
  if (session == nullptr) return capi::complain_because(EINVAL, "whimbrel_release", kNoSession);
  return session->release(pages_within(memory, bytes));
}

// ---- hints
// -------------------------------------------------------------------------------------------------------------

int whimbrel_migrate(whimbrel_session* session, const void* start, std::size_t bytes, whimbrel_outcome* outcome) {
  return move_now(session, "whimbrel_migrate", HintKind::kEvict, pages_of(start, bytes), outcome);
}

int whimbrel_prefetch(whimbrel_session* session, const void* start, std::size_t bytes, whimbrel_outcome* outcome) {
  return move_now(session, "whimbrel_prefetch", HintKind::kFetch, pages_of(start, bytes), outcome);
}

int whimbrel_pin(whimbrel_session* session, const void* start, std::size_t bytes, whimbrel_outcome* outcome) {
  const PageRange range = pages_of(start, bytes);
  if (const int bad = check(session, "whimbrel_pin", range); bad != 0) return bad;
  HintResult result;
  const int done = session->pin(range, &result);
  fill(outcome, range.count.raw(), result);
  return done;
}

int whimbrel_unpin(whimbrel_session* session, const void* start, std::size_t bytes) {
  const PageRange range = pages_of(start, bytes);
  if (const int bad = check(session, "whimbrel_unpin", range); bad != 0) return bad;
  return session->unpin(range);
}

int whimbrel_discard(whimbrel_session* session, void* start, std::size_t bytes) {
  if (const int bad = check(session, "whimbrel_discard", pages_of(start, bytes)); bad != 0) return bad;
  const PageRange range = pages_within(start, bytes);
  return range.empty() ? 0 : session->discard(range);
}

int whimbrel_advise(whimbrel_session* session, const void* start, std::size_t bytes, whimbrel_advice advice) {
  constexpr const char* kWhat = "whimbrel_advise";
  const PageRange range = pages_of(start, bytes);
  if (const int bad = check(session, kWhat, range); bad != 0) return bad;
  HintKind kind = HintKind::kNormal;
  switch (advice) {
    case WHIMBREL_NORMAL:
      kind = HintKind::kNormal;
      break;
    case WHIMBREL_SEQUENTIAL:
      kind = HintKind::kSequential;
      break;
    case WHIMBREL_RANDOM:
      kind = HintKind::kRandom;
      break;
    case WHIMBREL_COLD:
      kind = HintKind::kCold;
      break;
    case WHIMBREL_READ_MOSTLY:
      return capi::complain_because(EOPNOTSUPP, kWhat, "read-mostly: no device keeps a copy of what is home",
                                    "do without; WHIMBREL_COLD and whimbrel_pin() are there");
    default:
      return complain(EINVAL, "whimbrel_advise: no such advice");
  }
  session->note_advice();
  const Result<HintResult> done = session->ask(kind, range);
  return done ? 0 : complain(done.error(), kWhat, "advise fewer, larger ranges");
}

int whimbrel_prefer_device(whimbrel_session* session, const void* start, std::size_t bytes, const char* device) {
  constexpr const char* kWhat = "whimbrel_prefer_device";
  if (const int bad = check(session, kWhat, pages_of(start, bytes)); bad != 0) return bad;
  const std::string_view name = device != nullptr ? device : "";
  if (name.substr(0, name.find(':')) == session->engine().device_name()) return 0;
  return capi::complain_because(EOPNOTSUPP, kWhat, "the session has one device, and it is another one",
                                "open a session with that device");
}

// ---- requests
// ----------------------------------------------------------------------------------------------------------

int whimbrel_prefetch_start(whimbrel_session* session, const void* from, std::size_t bytes, whimbrel_request* request) {
  return start(session, "whimbrel_prefetch_start", HintKind::kFetch, pages_of(from, bytes), request);
}

int whimbrel_migrate_start(whimbrel_session* session, const void* from, std::size_t bytes, whimbrel_request* request) {
  return start(session, "whimbrel_migrate_start", HintKind::kEvict, pages_of(from, bytes), request);
}

int whimbrel_is_done(const whimbrel_request* request) {
  return request->session->engine().hints().is_done(request->ticket) ? 1 : 0;
}

int whimbrel_wait(const whimbrel_request* request, int milliseconds, whimbrel_outcome* outcome) {
  const std::int64_t nanoseconds = milliseconds < 0 ? -1 : std::int64_t{milliseconds} * 1'000'000;
  const Result<HintResult> result = request->session->engine().hints().wait(request->ticket, nanoseconds);
  if (!result) return complain(result.error(), "whimbrel_wait");
  fill(outcome, request->pages, *result);
  return 0;
}

void whimbrel_forget(const whimbrel_request* request) { request->session->engine().hints().forget(request->ticket); }

// ---- where pages are
// ---------------------------------------------------------------------------------------------------

namespace {

whimbrel_page describe(std::uint32_t bits) noexcept {
  whimbrel_page page{};
  if ((bits & PageReport::kMoving) != 0)
    page.where = WHIMBREL_MOVING;
  else if ((bits & PageReport::kAway) != 0)
    page.where = WHIMBREL_AWAY;
  else if ((bits & PageReport::kResident) != 0 && (bits & PageReport::kZeroPage) == 0)
    page.where = WHIMBREL_RESIDENT;
  if ((bits & PageReport::kHuge) != 0) page.order = kHugeOrder;
  if ((bits & PageReport::kReadable) != 0) page.rights |= WHIMBREL_CAN_READ;
  if ((bits & PageReport::kWritable) != 0) page.rights |= WHIMBREL_CAN_WRITE;
  if ((bits & PageReport::kPinned) != 0) page.flags |= WHIMBREL_IS_PINNED;
  return page;
}

}  // namespace

long whimbrel_residency(whimbrel_session* session, const void* start_at, std::size_t bytes, whimbrel_page* pages,
                        std::size_t room) {
  constexpr const char* kWhat = "whimbrel_residency";
  const PageRange range = pages_of(start_at, bytes);
  if (const int bad = check(session, kWhat, range); bad != 0) return bad;
  std::uint32_t bits[HintQueue::kReportPages];
  const std::uint64_t wanted = pages == nullptr ? 0 : std::min<std::uint64_t>(room, range.count.raw());
  for (std::uint64_t at = 0; at < wanted;) {
    const std::uint64_t count = std::min<std::uint64_t>(wanted - at, HintQueue::kReportPages);
    const Result<HintResult> seen =
        session->ask(HintKind::kReport, {range.first + PageCount(at), PageCount(count)}, bits);
    if (!seen) return complain(seen.error(), kWhat);
    for (std::uint64_t i = 0; i < count; ++i) pages[at + i] = describe(bits[i]);
    at += count;
  }
  return static_cast<long>(range.count.raw());
}
