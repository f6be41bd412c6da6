#include "fastack/measure.hpp"

#include "rows/rows.hpp"

namespace fastack {} // namespace fastack
