// The kind of device that `nbd:URI` names.
#pragma once

#include "devices/device_spec.h"

namespace whimbrel {

extern const DeviceKind kNbdDevice;

}  // namespace whimbrel
