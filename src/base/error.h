// Errors are values. A failing call says which kind of failure it was (callers act on that), which errno
// stood behind it and which call it was (people act on those).
//
// Only linux/ and devices/ turn an errno into an Error; nobody above them reads errno.
#pragma once

#include <cstdint>
#include <expected>

namespace whimbrel {

enum class Errc : std::uint8_t {
  kBusy,           // pinned, shared after fork, or locked by somebody else: back off, try later
  kAgain,          // transient; nothing is known about why
  kEventPending,   // an address-space event is unread: read it, look the page up again, retry
  kNotFound,       // no page or no mapping there
  kExists,         // the slot is already filled
  kFault,          // the slot holds a marker, or the buffer is not readable
  kInvalid,        // arguments or mapping do not fit together
  kNotPermitted,   // policy of the kernel, a filter, or missing rights
  kNotSupported,   // this kernel cannot do it
  kNoMemory,       // no RAM, no page table, or our own reservation is used up
  kGone,           // the address space or the device no longer exists
  kDeviceFull,     // the device has no place for the contents
  kDeviceIo,       // the device failed; the contents in RAM are untouched
  kCorrupt,        // stored contents fail their checksum
};

// Name of a kind for messages and logs, e.g. "busy". Never null.
[[nodiscard]] const char* errc_name(Errc code) noexcept;

struct Error {
  Errc code = Errc::kInvalid;
  int sys = 0;               // errno behind it, 0 when there was none
  const char* where = "";    // static text: the call that failed
};

template <class T>
using Result = std::expected<T, Error>;

[[nodiscard]] constexpr std::unexpected<Error> fail(Errc code, int sys = 0, const char* where = "") noexcept {
  return std::unexpected<Error>(Error{code, sys, where});
}

}  // namespace whimbrel
