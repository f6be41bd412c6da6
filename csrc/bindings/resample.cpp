#include "fastack/resample.hpp"

#include "bindings/arrays.hpp"

void bind_resample(py::module_& m) { (void)m; }
