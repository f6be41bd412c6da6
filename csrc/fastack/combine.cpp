#include "fastack/combine.hpp"

#include "rows/rows.hpp"

namespace fastack {} // namespace fastack
