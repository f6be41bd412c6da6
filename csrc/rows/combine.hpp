#pragma once
// Row functions of the stage "combine"; combine.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

struct CombineRows {};

} // namespace fastack
