#include "migrate/trace.h"

namespace whimbrel {

const char* trace_step_name(TraceStep step) noexcept {
  switch (step) {
    case TraceStep::kNone: return "none";
    case TraceStep::kMessageRemove: return "message: remove";
    case TraceStep::kMessageUnmap: return "message: unmap";
    case TraceStep::kMessageRemap: return "message: remap";
    case TraceStep::kCollected: return "collected";
    case TraceStep::kRefused: return "refused";
    case TraceStep::kCollectedHome: return "collected home";
    case TraceStep::kInserted: return "inserted";
    case TraceStep::kSettled: return "settled";
    case TraceStep::kInstalled: return "installed";
    case TraceStep::kReplaced: return "replaced";
    case TraceStep::kDropped: return "dropped";
    case TraceStep::kRemapped: return "remapped";
    case TraceStep::kHoleFilled: return "hole filled";
    case TraceStep::kFault: return "fault";
  }
  return "unknown";
}

}  // namespace whimbrel
