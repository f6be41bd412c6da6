#include "fastack/background.hpp"

#include "rows/rows.hpp"

namespace fastack {} // namespace fastack
