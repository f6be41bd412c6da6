#pragma once

namespace fastack {

/// Highest x86-64 level (2, 3, 4) that this processor and its operating system run; 0 elsewhere.
int x86_level();

} // namespace fastack
