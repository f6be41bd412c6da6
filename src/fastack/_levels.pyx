# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Loops over values: a mesh at points, medians, clipped and robust means."""

from libc.math cimport NAN, fabs, floor, fmax, fmin, isfinite, sqrt

import numpy as np


cdef void select(double* values, Py_ssize_t n, Py_ssize_t k) noexcept nogil:
    """Bring the k-th of finite values to its place, lower ones before it, higher ones behind it."""
    cdef Py_ssize_t low = 0, high = n - 1, i, j
    cdef double pivot
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k <= j:
            high = j
        elif k >= i:
            low = i
        else:
            break


cdef double middle(double* values, Py_ssize_t n) noexcept nogil:
    """Median of finite values, whose order is lost."""
    cdef Py_ssize_t k = n // 2, i
    cdef double below
    select(values, n, k)
    if n % 2:
        return values[k]
    below = values[0]
    for i in range(1, k):
        below = fmax(below, values[i])
    return (below + values[k]) / 2


def mesh_values(const double[:, :] level, double cell_y, double cell_x, double height_, double width_,
                const double[:, :] xy, double reach):
    """Mesh at points (n, 2) of the image, bilinear, and straight beyond the outermost mesh points; NaN further than
    `reach` outside the image."""
    cdef Py_ssize_t i, n = xy.shape[0], my = level.shape[0], mx = level.shape[1], ix, iy, jx, jy
    made = np.empty(n)
    cdef double[::1] out = made
    cdef double x, y, fx, fy, top, bottom
    with nogil:
        for i in range(n):
            x, y = xy[i, 0], xy[i, 1]
            if not (-0.5 - reach <= x <= width_ - 0.5 + reach and -0.5 - reach <= y <= height_ - 0.5 + reach):
                out[i] = NAN
                continue
            x, y = (x + 0.5) / cell_x - 0.5, (y + 0.5) / cell_y - 0.5
            ix = <Py_ssize_t>fmin(fmax(floor(x), 0), max(0, mx - 2))
            iy = <Py_ssize_t>fmin(fmax(floor(y), 0), max(0, my - 2))
            jx, jy = min(ix + 1, mx - 1), min(iy + 1, my - 1)
            fx, fy = x - ix, y - iy
            top = level[iy, ix] * (1 - fx) + level[iy, jx] * fx
            bottom = level[jy, ix] * (1 - fx) + level[jy, jx] * fx
            out[i] = top * (1 - fy) + bottom * fy
    return made


def medians(const double[:, ::1] values, chosen):
    """Median of the chosen values of each row; 0 where there is none."""
    cdef const unsigned char[:, ::1] mask = chosen.view(np.uint8)
    made = np.zeros(values.shape[0])
    cdef double[::1] out = made
    cdef double[::1] room = np.empty(max(values.shape[1], 1))
    cdef Py_ssize_t i, j, n
    with nogil:
        for i in range(values.shape[0]):
            n = 0
            for j in range(values.shape[1]):
                if mask[i, j]:
                    room[n] = values[i, j]
                    n += 1
            if n:
                out[i] = middle(&room[0], n)
    return made


def clipped_mean(values):
    """Mean of the finite values within 3 robust sigmas of their median, again until none falls out (five times at
    most); the median of four and fewer, NaN of none."""
    cdef double[::1] known = np.array(values, np.float64)
    cdef double[::1] room = np.empty(max(known.shape[0], 1))
    cdef Py_ssize_t i, k, n = 0
    cdef int _round
    cdef double centre, limit, total = 0
    with nogil:
        for i in range(known.shape[0]):
            if isfinite(known[i]):
                known[n] = known[i]
                n += 1
        for _round in range(5 if n else 0):
            for i in range(n):
                room[i] = known[i]
            centre = middle(&room[0], n)
            for i in range(n):
                room[i] = fabs(known[i] - centre)
            limit = 3 * 1.4826 * middle(&room[0], n)
            k = 0
            for i in range(n):
                k += fabs(known[i] - centre) <= limit
            if k == n or k < 3:
                break
            k = 0
            for i in range(n):
                if fabs(known[i] - centre) <= limit:
                    known[k] = known[i]
                    k += 1
            n = k
        if n == 0:
            total = NAN
        elif n > 4:
            for i in range(n):
                total += known[i]
            total /= n
        else:
            total = middle(&known[0], n)
    return total


def robust_mean(const double[::1] values, const double[::1] variance):
    """Weighted mean of values in rising order after clipping at 4 sigma about the weighted median, its standard error
    and the number behind it; a common variance is added to all where they scatter more than their own explains."""
    cdef Py_ssize_t i, k, inside, n = values.shape[0], m = n
    cdef unsigned char[::1] keep = np.ones(n, np.uint8)
    cdef unsigned char[::1] new = np.ones(n, np.uint8)
    cdef double[::1] room = np.empty(n)
    cdef int _round
    cdef double extra = 0, mean = 0, half, total, spread, chi2 = 0
    cdef bint same
    with nogil:
        for _round in range(10):
            half = 0
            for i in range(n):
                if keep[i]:
                    half += 1 / (variance[i] + extra)
            total = 0
            for i in range(n):
                if keep[i]:
                    mean = values[i]
                    total += 1 / (variance[i] + extra)
                    if total >= half / 2:
                        break
            k = 0
            for i in range(n):
                if keep[i]:
                    room[k] = fabs(values[i] - mean)
                    k += 1
            spread = 1.4826 * middle(&room[0], k)
            k = 0
            for i in range(n):
                if keep[i]:
                    room[k] = variance[i]
                    k += 1
            extra = fmax(0, spread * spread - middle(&room[0], k))
            inside, same = 0, True
            for i in range(n):
                new[i] = fabs(values[i] - mean) < 4 * sqrt(variance[i] + extra) + 1e-12
                inside += new[i]
                same &= new[i] == keep[i]
            if inside < 3 or same:
                break
            m = inside
            for i in range(n):
                keep[i] = new[i]
        total = mean = 0
        for i in range(n):
            if keep[i]:
                total += 1 / (variance[i] + extra)
                mean += values[i] / (variance[i] + extra)
        mean /= total
        for i in range(n):
            if keep[i]:
                chi2 += (values[i] - mean) ** 2 / (variance[i] + extra)
    return mean, sqrt(fmax(1, chi2 / max(1, m - 1)) / total), m
