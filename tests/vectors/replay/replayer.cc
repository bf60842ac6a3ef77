#include "replayer.h"

#include <sys/prctl.h>

#include <cstdlib>
#include <utility>

#include "window.h"

namespace vectors {

Replayer::Replayer(ReplayOptions options) : options_(std::move(options)) {
  handles_.fill(-1);
  files_.fill(-1);
}

void Replayer::run(const Script& script) {
  catch_faults();
  // Orphans of children come to us, so that the last line is printed before we end.
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  run_block(script.body());
}

void Replayer::run_block(const Block& block) {
  for (const Step& step : block) {
    if (step.fork) {
      run_fork(step.operation, *step.fork);
    } else if (step.operation.verb == Verb::kExit) {
      std::exit(0);  // closes the pipes: the child goes on when this process is gone
    } else {
      run_operation(step.operation);
    }
  }
}

void Replayer::run_operation(const Operation& operation) {
  const bool skipped = (options_.skip_devices && is_device(operation.verb)) ||
                       (options_.skip_device_writes && operation.verb == Verb::kDeviceWrite);
  out_.begin(depth_, operation.line, operation.text);
  if (skipped) {
    out_.put(" skipped");
  } else if (is_device(operation.verb)) {
    out_.put(" ");
    run_device_operation(operation);
  } else {
    run_memory_operation(operation);
  }
  out_.end();
}

}  // namespace vectors
