#pragma once
// Interpolating kernels as the polynomials that the rows take.

#include "fastack/resample.hpp"
#include "rows/resample.hpp"

namespace fastack {

/// Nearest, bilinear, Keys' bicubic or Lanczos. No weight errs by more than 2e-6; the area-exact kernel has none.
const ResampleKernel& expanded(Kernel kernel);

} // namespace fastack
