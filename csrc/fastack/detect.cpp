#include "fastack/detect.hpp"

#include "rows/rows.hpp"

namespace fastack {} // namespace fastack
