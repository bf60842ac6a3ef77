#include "base/error.h"

namespace whimbrel {

const char* errc_name(Errc code) noexcept {
  switch (code) {
    case Errc::kBusy: return "busy";
    case Errc::kAgain: return "try again";
    case Errc::kEventPending: return "address-space event pending";
    case Errc::kNotFound: return "not found";
    case Errc::kExists: return "already there";
    case Errc::kFault: return "bad slot or buffer";
    case Errc::kInvalid: return "invalid";
    case Errc::kNotPermitted: return "not permitted";
    case Errc::kNotSupported: return "not supported";
    case Errc::kNoMemory: return "no memory";
    case Errc::kGone: return "gone";
    case Errc::kDeviceFull: return "device full";
    case Errc::kDeviceIo: return "device i/o error";
    case Errc::kCorrupt: return "corrupt contents";
  }
  return "unknown";
}

}  // namespace whimbrel
