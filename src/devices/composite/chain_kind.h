// The kind of device that `chain:A@SIZE,B@SIZE,C` names.
#pragma once

#include "devices/device_spec.h"

namespace whimbrel {

extern const DeviceKind kChainDevice;

}  // namespace whimbrel
