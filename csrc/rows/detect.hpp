#pragma once
// Row functions of the stage "detect"; detect.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

struct DetectRows {};

} // namespace fastack
