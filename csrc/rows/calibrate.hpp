#pragma once
// Row functions of the stage "calibrate"; calibrate.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

struct CalibrateRows {};

} // namespace fastack
