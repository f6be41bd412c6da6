#include "fastack/background.hpp"

#include "bindings/arrays.hpp"

void bind_background(py::module_& m) { (void)m; }
