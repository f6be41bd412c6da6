#pragma once
// Row functions of the stage "resample"; resample.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

struct ResampleRows {};

} // namespace fastack
