// The kind of device that `file:PATH` names.
#pragma once

#include "devices/device_spec.h"

namespace whimbrel {

extern const DeviceKind kFileDevice;

}  // namespace whimbrel
