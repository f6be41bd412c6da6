#pragma once
// Row functions of the stage "measure"; measure.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

struct MeasureRows {};

} // namespace fastack
