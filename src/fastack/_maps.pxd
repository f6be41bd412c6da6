"""Terms of a polynomial map."""

cdef enum:
    WIDEST = 10  # terms of a cubic


cdef inline void monomials(double u, double v, double* out) noexcept nogil:
    out[0], out[1], out[2], out[3], out[4], out[5] = 1, u, v, u * u, u * v, v * v
    out[6], out[7], out[8], out[9] = u * u * u, u * u * v, u * v * v, v * v * v
