#pragma once
// Row functions of the stage "background"; background.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

struct BackgroundRows {};

} // namespace fastack
