#include "fastack/measure.hpp"

#include "bindings/arrays.hpp"

void bind_measure(py::module_& m) { (void)m; }
