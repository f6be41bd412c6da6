#include "fastack/resample.hpp"

#include "rows/rows.hpp"

namespace fastack {} // namespace fastack
