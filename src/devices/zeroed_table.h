// Where it was; see base/zeroed_table.h.
#pragma once

#include "base/zeroed_table.h"
