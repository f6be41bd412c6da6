#pragma once

#include "fastack/view.hpp"

namespace fastack {} // namespace fastack
