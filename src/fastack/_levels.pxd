"""Selection and median."""

cdef void select(double* values, Py_ssize_t n, Py_ssize_t k) noexcept nogil
cdef double middle(double* values, Py_ssize_t n) noexcept nogil
