#include "fastack/calibrate.hpp"

#include "bindings/arrays.hpp"

void bind_calibrate(py::module_& m) { (void)m; }
