#include "fastack/calibrate.hpp"

#include "rows/rows.hpp"

namespace fastack {} // namespace fastack
