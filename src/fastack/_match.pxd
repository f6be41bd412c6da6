"""Similarities and their least-squares fit."""

cdef double INFINITE


cdef struct Similarity:
    double c  # x' = c x - s p y + tx
    double s  # y' = s x + c p y + ty
    double tx
    double ty
    double parity  # p: +1, or -1 for a mirror image


cdef struct Fit:
    Similarity map
    Py_ssize_t n  # pairs behind it
    double residual  # sum of the squared distances of its pairs
    double spread  # n * sum |x - mean|^2 / span^2: volume factor of the least-squares residual


cdef inline void apply(const Similarity* t, double x, double y, double* u, double* v) noexcept nogil:
    u[0] = t.c * x - t.s * t.parity * y + t.tx
    v[0] = t.s * x + t.c * t.parity * y + t.ty


cdef bint least_squares(const double[:, ::1] a, const double[:, ::1] b, const Py_ssize_t* owner, double parity,
                        Fit* out) noexcept nogil
