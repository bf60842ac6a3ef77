// The kind of device that `mirror:A,B` names.
#pragma once

#include "devices/device_spec.h"

namespace whimbrel {

extern const DeviceKind kMirrorDevice;

}  // namespace whimbrel
