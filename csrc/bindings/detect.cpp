#include "fastack/detect.hpp"

#include "bindings/arrays.hpp"

void bind_detect(py::module_& m) { (void)m; }
