# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Loops over points through polynomial maps: the maps, their derivatives and inverses."""

from libc.math cimport fabs, fmax

import numpy as np


cdef struct Map:
    int m
    double[10] cx
    double[10] cy
    double x0
    double y0
    double scale


cdef int read_map(Map* t, const double[:] cx, const double[:] cy, double x0, double y0, double scale) except -1:
    cdef int k
    if cx.shape[0] != cy.shape[0] or cx.shape[0] not in (3, 6, 10):
        raise ValueError(f"a map has 3, 6 or 10 terms an axis, not {cx.shape[0]} and {cy.shape[0]}")
    t.m, t.x0, t.y0, t.scale = <int>cx.shape[0], x0, y0, scale
    for k in range(t.m):
        t.cx[k], t.cy[k] = cx[k], cy[k]
    return 0


cdef void apply_map(const Map* t, double x, double y, double* out) noexcept nogil:
    cdef double[10] terms
    cdef int k
    monomials((x - t.x0) / t.scale, (y - t.y0) / t.scale, terms)
    out[0] = out[1] = 0
    for k in range(t.m):
        out[0] += terms[k] * t.cx[k]
        out[1] += terms[k] * t.cy[k]


cdef void derive_map(const Map* t, double x, double y, double* out) noexcept nogil:
    """d(x', y') / d(x, y), row by row."""
    cdef double u = (x - t.x0) / t.scale, v = (y - t.y0) / t.scale
    cdef double[10] du = [0, 1, 0, 2 * u, v, 0, 3 * u * u, 2 * u * v, v * v, 0]
    cdef double[10] dv = [0, 0, 1, 0, u, 2 * v, 0, u * u, 2 * u * v, 3 * v * v]
    cdef int k
    out[0] = out[1] = out[2] = out[3] = 0
    for k in range(1, t.m):
        out[0] += du[k] * t.cx[k]
        out[1] += dv[k] * t.cx[k]
        out[2] += du[k] * t.cy[k]
        out[3] += dv[k] * t.cy[k]
    for k in range(4):
        out[k] /= t.scale


def evaluate(const double[:, :] xy, const double[:] cx, const double[:] cy, double x0, double y0, double scale):
    """Points (n, 2) through a polynomial map; see `types.Transform`."""
    cdef Map t
    cdef Py_ssize_t i, n = xy.shape[0]
    made = np.empty((n, 2))
    cdef double[:, ::1] out = made
    read_map(&t, cx, cy, x0, y0, scale)
    with nogil:
        for i in range(n):
            apply_map(&t, xy[i, 0], xy[i, 1], &out[i, 0])
    return made


def derivatives(const double[:, :] xy, const double[:] cx, const double[:] cy, double x0, double y0, double scale):
    """(n, 2, 2) derivatives of a polynomial map."""
    cdef Map t
    cdef Py_ssize_t i, n = xy.shape[0]
    made = np.empty((n, 2, 2))
    cdef double[:, :, ::1] out = made
    read_map(&t, cx, cy, x0, y0, scale)
    with nogil:
        for i in range(n):
            derive_map(&t, xy[i, 0], xy[i, 1], &out[i, 0, 0])
    return made


def invert_map(const double[:, :] xy, const double[:] cx, const double[:] cy, double x0, double y0, double scale,
               double precision, int steps):
    """Points (n, 2) that a polynomial map brings to `xy`, by Newton's method from its linear part."""
    cdef Map t
    cdef Py_ssize_t i, n = xy.shape[0]
    cdef int step
    made = np.empty((n, 2))
    cdef double[:, ::1] out = made
    cdef double[4] d
    cdef double[2] at
    cdef double det, dx, dy
    read_map(&t, cx, cy, x0, y0, scale)
    with nogil:
        for i in range(n):
            out[i, 0], out[i, 1] = x0, y0
            for step in range(steps + 1):
                derive_map(&t, out[i, 0], out[i, 1], d)
                apply_map(&t, out[i, 0], out[i, 1], at)
                dx, dy = xy[i, 0] - at[0], xy[i, 1] - at[1]
                det = d[0] * d[3] - d[1] * d[2]
                dx, dy = (d[3] * dx - d[1] * dy) / det, (d[0] * dy - d[2] * dx) / det
                out[i, 0] += dx
                out[i, 1] += dy
                if step > 0 and fmax(fabs(dx), fabs(dy)) < precision:
                    break
    return made
