#include "fastack/combine.hpp"

#include "bindings/arrays.hpp"

void bind_combine(py::module_& m) { (void)m; }
