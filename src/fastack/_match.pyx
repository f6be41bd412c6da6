# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Loops over two lists of stars: triangles, votes, pairs, and the odds that they fell together by chance."""

from libc.math cimport M_PI, fabs, floor, fmax, fmin, hypot, isfinite, lgamma, log, sqrt
from libc.stdlib cimport calloc, free, malloc

import numpy as np

from fastack._levels cimport select

cdef double FLOOR = 0.05  # pixel; no two lists of stars agree better than that, whatever their residuals say
cdef double INFINITE = 1e300


cdef struct Triangle:
    double u  # middle / longest side
    double v  # shortest / longest side
    double longest
    int vertex[3]  # opposite to the longest, middle, shortest side


cdef class Cells:
    """Points sorted into square cells, for neighbours within a radius that is no larger than a cell."""

    cdef double x0, y0, per_cell, cell
    cdef Py_ssize_t nx, ny, n
    cdef Py_ssize_t[::1] start, row
    cdef double[:, ::1] xy

    def __cinit__(self, const double[:, ::1] xy, double radius):
        cdef Py_ssize_t i, k, n = xy.shape[0]
        cdef double x1, y1
        cdef double[4] around
        self.n = n
        surround(xy, around)
        if n == 0:
            around[0] = around[1] = around[2] = around[3] = 0
        self.x0, self.y0, x1, y1 = around[0], around[1], around[2], around[3]
        self.cell = fmax(fmax(radius, 1e-6), sqrt((x1 - self.x0) * (y1 - self.y0) / fmax(n, 1)))
        self.cell = fmax(self.cell, fmax(x1 - self.x0, y1 - self.y0) / 4096)
        self.per_cell = 1 / self.cell
        self.nx = <Py_ssize_t>((x1 - self.x0) * self.per_cell) + 1
        self.ny = <Py_ssize_t>((y1 - self.y0) * self.per_cell) + 1
        self.start = np.zeros(self.nx * self.ny + 2, np.intp)
        self.row = np.empty(n, np.intp)
        self.xy = np.empty((n, 2))
        for i in range(n):
            self.start[self.cell_of(xy[i, 0], xy[i, 1]) + 2] += 1
        for i in range(1, self.nx * self.ny + 2):
            self.start[i] += self.start[i - 1]
        for i in range(n):
            k = self.cell_of(xy[i, 0], xy[i, 1]) + 1
            self.row[self.start[k]] = i
            self.xy[self.start[k], 0] = xy[i, 0]
            self.xy[self.start[k], 1] = xy[i, 1]
            self.start[k] += 1

    cdef Py_ssize_t cell_of(self, double x, double y) noexcept nogil:
        return (<Py_ssize_t>((y - self.y0) * self.per_cell)) * self.nx + <Py_ssize_t>((x - self.x0) * self.per_cell)

    cdef bint window(self, double x, double y, double r, Py_ssize_t* box) noexcept nogil:
        """Cells that a circle touches: first and last column, first and last row; False where there is none."""
        cdef double left = (x - r - self.x0) * self.per_cell, right = (x + r - self.x0) * self.per_cell
        cdef double low = (y - r - self.y0) * self.per_cell, high = (y + r - self.y0) * self.per_cell
        if not (right >= 0 and high >= 0 and left < self.nx and low < self.ny):
            return False
        box[0], box[1] = <Py_ssize_t>(left if left > 0 else 0), min(<Py_ssize_t>right, self.nx - 1)
        box[2], box[3] = <Py_ssize_t>(low if low > 0 else 0), min(<Py_ssize_t>high, self.ny - 1)
        return True

    cdef Py_ssize_t nearest(self, double x, double y, double r, double* d2) noexcept nogil:
        """Row of the nearest point within `r`, or -1."""
        cdef Py_ssize_t box[4]
        cdef Py_ssize_t j, k, found = -1
        cdef double dx, dy, d
        d2[0] = r * r
        if not self.window(x, y, r, box):
            return -1
        for j in range(box[2], box[3] + 1):
            for k in range(self.start[j * self.nx + box[0]], self.start[j * self.nx + box[1] + 1]):
                dx, dy = self.xy[k, 0] - x, self.xy[k, 1] - y
                d = dx * dx + dy * dy
                # ties go to the earlier row, so that the order inside a cell does not matter
                if d < d2[0] or (d == d2[0] and (found < 0 or self.row[k] < found)):
                    d2[0], found = d, self.row[k]
        return found

    cdef Py_ssize_t count(self, double x, double y, double inner, double outer) noexcept nogil:
        """How many points lie within `outer`, but not within `inner`."""
        cdef Py_ssize_t box[4]
        cdef Py_ssize_t j, k, n = 0
        cdef double dx, dy, d
        if not self.window(x, y, outer, box):
            return 0
        for j in range(box[2], box[3] + 1):
            for k in range(self.start[j * self.nx + box[0]], self.start[j * self.nx + box[1] + 1]):
                dx, dy = self.xy[k, 0] - x, self.xy[k, 1] - y
                d = dx * dx + dy * dy
                n += inner * inner < d <= outer * outer
        return n


cdef void surround(const double[:, ::1] xy, double* out) noexcept nogil:
    """Smallest upright rectangle around the points: its lower left and its upper right corner."""
    cdef Py_ssize_t i
    out[0] = out[1] = INFINITE
    out[2] = out[3] = -INFINITE
    for i in range(xy.shape[0]):
        out[0], out[1] = min(out[0], xy[i, 0]), min(out[1], xy[i, 1])
        out[2], out[3] = max(out[2], xy[i, 0]), max(out[3], xy[i, 1])


cdef Py_ssize_t pair_up(const Similarity* t, const double[:, ::1] a, Cells b, double r,
                        Py_ssize_t* owner, double* d2) noexcept nogil:
    """Nearest neighbours one to one: `owner[j]` is the row of `a` that falls on b's row j, or -1."""
    cdef Py_ssize_t i, j, n = 0
    cdef double x, y, d
    for j in range(b.n):
        owner[j] = -1
    for i in range(a.shape[0]):
        apply(t, a[i, 0], a[i, 1], &x, &y)
        j = b.nearest(x, y, r, &d)
        if j < 0:
            continue
        if owner[j] < 0:
            n += 1
        elif d >= d2[j]:
            continue
        owner[j], d2[j] = i, d
    return n


cdef bint least_squares(const double[:, ::1] a, const double[:, ::1] b, const Py_ssize_t* owner, double parity,
                        Fit* out) noexcept nogil:
    """Similarity of the given parity through all pairs; False where the stars lie in one point."""
    cdef Py_ssize_t j, n = 0
    cdef double mx = 0, my = 0, nx = 0, ny = 0, xx = 0, re = 0, im = 0, ww = 0, x, y, u, v
    cdef double left = INFINITE, right = -INFINITE, low = INFINITE, high = -INFINITE
    for j in range(b.shape[0]):
        if owner[j] < 0:
            continue
        n += 1
        x, y = a[owner[j], 0], a[owner[j], 1]
        mx, my, nx, ny = mx + x, my + y, nx + b[j, 0], ny + b[j, 1]
        left, right, low, high = min(left, x), max(right, x), min(low, y), max(high, y)
    if n < 2:
        return False
    mx, my, nx, ny = mx / n, my / n, nx / n, ny / n
    for j in range(b.shape[0]):
        if owner[j] < 0:
            continue
        x, y = a[owner[j], 0] - mx, (a[owner[j], 1] - my) * parity
        u, v = b[j, 0] - nx, b[j, 1] - ny
        xx += x * x + y * y
        re += x * u + y * v
        im += x * v - y * u
        ww += u * u + v * v
    if xx <= 0:
        return False
    out.map.c, out.map.s, out.map.parity = re / xx, im / xx, parity
    out.map.tx = nx - out.map.c * mx + out.map.s * parity * my
    out.map.ty = ny - out.map.s * mx - out.map.c * parity * my
    out.n = n
    out.residual = fmax(ww - (re * re + im * im) / xx, 0)
    out.spread = n * xx / fmax((right - left) ** 2, (high - low) ** 2)
    return True


cdef double odds(const Fit* fit, double n_a, double density) noexcept nogil:
    """Logarithm of 1 / P(any similarity through two of the pairs brings so many others so close by chance).

    The residuals of k pairs about their least-squares similarity fill 2k - 4 dimensions, so that the chance is that
    volume times the density of stars to the power k - 2, times the choices of k stars of n_a; a number of false
    alarms in the sense of Desolneux, Moisan and Morel (2008), the hypotheses being counted by the caller.
    """
    cdef double k = fit.n, s
    if k < 3:
        return -INFINITE
    n_a = fmax(n_a, k)
    s = fmax(fit.residual, 2 * (k - 2) * FLOOR * FLOOR)
    return -(lgamma(n_a - 1) - lgamma(k - 1) - lgamma(n_a - k + 1)
             + (k - 2) * log(M_PI * density * s) - lgamma(k - 1) + log(fmax(fit.spread, 1)))


cdef double judge(Fit* fit, const double[:, ::1] a, const double[:, ::1] b, Cells cells, double tolerance,
                  double density, bint local, Py_ssize_t* owner, double* d2) noexcept nogil:
    """Refine a similarity on its own pairs, and give the best odds over pairing radii of 1, 1/2, 1/4 tolerance.

    With `local`, the density of stars is also measured around the mapped stars themselves (a chance match of two
    clusters finds many neighbours at any radius) and the higher one counts.
    """
    cdef Py_ssize_t i, n, step, inside = 0, near = 0
    cdef double r, x, y, width = 4 * tolerance
    cdef Similarity start
    cdef bint settled = False
    for step in range(5):
        r = 1.5 * tolerance if step < 2 else tolerance
        start = fit.map
        n = pair_up(&start, a, cells, r, owner, d2)
        if n < 3 or not least_squares(a, b, owner, start.parity, fit):
            return -INFINITE
        settled = (step >= 2 and fit.map.c == start.c and fit.map.s == start.s and fit.map.tx == start.tx
                   and fit.map.ty == start.ty)
        if settled:  # pairing again would bring the same pairs
            break
    if not settled:
        pair_up(&fit.map, a, cells, tolerance, owner, d2)
    for i in range(a.shape[0]):
        apply(&fit.map, a[i, 0], a[i, 1], &x, &y)
        if (cells.x0 - r <= x <= cells.x0 + cells.nx * cells.cell
                and cells.y0 - r <= y <= cells.y0 + cells.ny * cells.cell):
            inside += 1
            if local:
                near += cells.count(x, y, tolerance, width)
    if local and inside:
        density = fmax(density, near / (inside * M_PI * (width * width - tolerance * tolerance)))
    return best_odds(fit, a, b, tolerance, density, inside, owner, d2)


cdef double best_odds(Fit* fit, const double[:, ::1] a, const double[:, ::1] b, double tolerance, double density,
                      double inside, Py_ssize_t* owner, double* d2) noexcept nogil:
    cdef Py_ssize_t j, _level
    cdef double r = tolerance, best = -INFINITE
    cdef Fit tight
    for _level in range(3):
        for j in range(b.shape[0]):
            if owner[j] >= 0 and d2[j] > r * r:
                owner[j] = -2 - owner[j]  # which may be undone
        if not least_squares(a, b, owner, fit.map.parity, &tight):
            break
        best = fmax(best, odds(&tight, inside, density))
        r *= 0.5
    return best - log(3.0)


cdef double extent(const double[:, ::1] xy) noexcept nogil:
    """Area of the smallest upright rectangle around the points (its sides at least a tenth of each other)."""
    cdef double[4] around
    cdef double w, h
    surround(xy, around)
    w, h = fmax(around[2] - around[0], 1), fmax(around[3] - around[1], 1)
    return fmax(w, 0.1 * h) * fmax(h, 0.1 * w)


cdef inline void swap_if_shorter(double* sides, int* vertex, int i, int j) noexcept nogil:
    if sides[i] < sides[j]:
        sides[i], sides[j] = sides[j], sides[i]
        vertex[i], vertex[j] = vertex[j], vertex[i]


cdef Py_ssize_t triangles(const double[:, ::1] xy, double shortest, double smallest, double largest, Triangle* out,
                          Py_ssize_t room) noexcept nogil:
    """All triangles of the given points, those of the first (brightest) points first; at most `room`."""
    cdef Py_ssize_t i, j, k, t = 0, m = xy.shape[0]
    cdef double sides[3]
    cdef double ij
    for k in range(2, m):
        for j in range(1, k):
            sides[0] = distance(xy, j, k)
            if sides[0] > largest or sides[0] < shortest:
                continue
            ij = sides[0]
            for i in range(j):
                sides[0], sides[1], sides[2] = ij, distance(xy, i, k), distance(xy, i, j)
                if fmin(sides[1], sides[2]) < shortest or fmax(sides[1], sides[2]) > largest:
                    continue
                if t == room:
                    return t
                out[t].vertex[0], out[t].vertex[1], out[t].vertex[2] = <int>i, <int>j, <int>k
                swap_if_shorter(sides, out[t].vertex, 0, 1)
                swap_if_shorter(sides, out[t].vertex, 0, 2)
                swap_if_shorter(sides, out[t].vertex, 1, 2)
                if sides[0] < smallest:
                    continue
                out[t].longest, out[t].u, out[t].v = sides[0], sides[1] / sides[0], sides[2] / sides[0]
                t += 1
    return t


cdef inline double distance(const double[:, ::1] xy, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    cdef double dx = xy[i, 0] - xy[j, 0], dy = xy[i, 1] - xy[j, 1]
    return sqrt(dx * dx + dy * dy)


cdef inline double height(const double[:, ::1] xy, const int* v, double longest) noexcept nogil:
    """Signed height over the longest side: its sign is the triangle's orientation."""
    return ((xy[v[1], 0] - xy[v[0], 0]) * (xy[v[2], 1] - xy[v[0], 1])
            - (xy[v[1], 1] - xy[v[0], 1]) * (xy[v[2], 0] - xy[v[0], 0])) / longest


cdef bint three_points(const double[:, ::1] a, const int* va, const double[:, ::1] b, const int* vb, double parity,
                       Fit* out) noexcept nogil:
    """Least-squares similarity through three pairs."""
    cdef int i
    cdef double mx = 0, my = 0, nx = 0, ny = 0, xx = 0, re = 0, im = 0, ww = 0, x, y, u, v
    for i in range(3):
        mx, my = mx + a[va[i], 0] / 3, my + a[va[i], 1] / 3
        nx, ny = nx + b[vb[i], 0] / 3, ny + b[vb[i], 1] / 3
    for i in range(3):
        x, y = a[va[i], 0] - mx, (a[va[i], 1] - my) * parity
        u, v = b[vb[i], 0] - nx, b[vb[i], 1] - ny
        xx, ww = xx + x * x + y * y, ww + u * u + v * v
        re, im = re + x * u + y * v, im + x * v - y * u
    if xx <= 0:
        return False
    out.map.c, out.map.s, out.map.parity = re / xx, im / xx, parity
    out.map.tx = nx - out.map.c * mx + out.map.s * parity * my
    out.map.ty = ny - out.map.s * mx - out.map.c * parity * my
    out.n, out.residual = 3, fmax(ww - (re * re + im * im) / xx, 0)
    return True


cdef bint same(const Similarity* s, const Similarity* t, const double[4] box, double limit) noexcept nogil:
    """Whether two maps agree at the corners of a box."""
    cdef int i
    cdef double x, y, u, v
    for i in range(4):
        apply(s, box[2 * (i & 1)], box[1 + 2 * (i >> 1)], &x, &y)
        apply(t, box[2 * (i & 1)], box[1 + 2 * (i >> 1)], &u, &v)
        if fabs(x - u) > limit or fabs(y - v) > limit:
            return False
    return True


cdef enum:
    BINS = 128  # of the invariants, per unit
    KEEP = 8  # distinct candidates that a search returns


cdef struct Search:
    double tolerance
    double low  # scale
    double high
    double density
    double stop  # odds at which the search ends
    Py_ssize_t enough  # stars beside the triangle's own that a candidate must bring together to be refined
    Py_ssize_t budget  # stars still to be looked up
    Py_ssize_t n_found
    double found[KEEP]
    Similarity maps[KEEP]
    double box[4]


cdef void keep(Search* q, const Fit* fit, double score) noexcept nogil:
    """Enter a candidate into the list of the best distinct ones."""
    cdef Py_ssize_t i, worst = 0
    for i in range(q.n_found):
        if same(&q.maps[i], &fit.map, q.box, 4 * q.tolerance):
            if score > q.found[i]:
                q.found[i], q.maps[i] = score, fit.map
            return
        if q.found[i] < q.found[worst]:
            worst = i
    if q.n_found < KEEP:
        worst = q.n_found
        q.n_found += 1
    elif score <= q.found[worst]:
        return
    q.found[worst], q.maps[worst] = score, fit.map


cdef bint test(Search* q, const double[:, ::1] a, const int* va, const double[:, ::1] b, const int* vb, Cells cells,
               double parity, Py_ssize_t* owner, double* d2) noexcept nogil:
    """Check one pair of triangles against all the other stars; True when its odds end the search."""
    cdef Fit fit
    cdef double scale2, x, y, d, score
    cdef Py_ssize_t i, hits = 0
    if not three_points(a, va, b, vb, parity, &fit):
        return False
    scale2 = fit.map.c * fit.map.c + fit.map.s * fit.map.s
    if scale2 < q.low * q.low or scale2 > q.high * q.high or fit.residual > q.tolerance * q.tolerance:
        return False
    q.budget -= a.shape[0]
    for i in range(a.shape[0]):
        apply(&fit.map, a[i, 0], a[i, 1], &x, &y)
        hits += cells.nearest(x, y, 1.5 * q.tolerance, &d) >= 0
    if hits < 3 + q.enough:
        return False
    score = judge(&fit, a, b, cells, q.tolerance, q.density, False, owner, d2)
    scale2 = fit.map.c * fit.map.c + fit.map.s * fit.map.s
    if score <= 0 or scale2 < q.low * q.low or scale2 > q.high * q.high:
        return False
    keep(q, &fit, score)
    return score >= q.stop


cdef void compare(Search* q, const double[:, ::1] a, const double[:, ::1] b, Cells cells, const Triangle* ta,
                  Py_ssize_t na, const Triangle* tb, const Py_ssize_t* start, const Py_ssize_t* order,
                  Py_ssize_t* owner, double* d2) noexcept nogil:
    """Every triangle of `a` against those of `b` with the same shape."""
    cdef Py_ssize_t i, k, row, cu, u0, u1, v0, v1
    cdef double eps, u, v, sign, ha, hb
    cdef int way
    cdef int vertex[3]
    for i in range(na):
        eps = 1.25 * q.tolerance / ta[i].longest
        for way in range(3):
            # sides equal within the errors may be sorted the other way round in the other list
            u, v = ta[i].u, ta[i].v
            vertex[0], vertex[1], vertex[2] = ta[i].vertex[0], ta[i].vertex[1], ta[i].vertex[2]
            if way == 1:
                if 1 - u > 2 * eps:
                    continue
                vertex[0], vertex[1] = vertex[1], vertex[0]
                u, v = 1 / u, v / u
            elif way == 2:
                if u - v > 2 * eps:
                    continue
                vertex[1], vertex[2] = vertex[2], vertex[1]
                u, v = v, u
            ha = height(a, vertex, ta[i].longest)
            u0, u1 = <Py_ssize_t>fmax((u - eps) * BINS, 0), <Py_ssize_t>fmin((u + eps) * BINS, BINS)
            v0, v1 = <Py_ssize_t>fmax((v - eps) * BINS, 0), <Py_ssize_t>fmin((v + eps) * BINS, BINS)
            for cu in range(u0, u1 + 1):
                for k in range(start[cu * (BINS + 1) + v0], start[cu * (BINS + 1) + v1 + 1]):
                    row = order[k]
                    if fabs(tb[row].u - u) > eps or fabs(tb[row].v - v) > eps:
                        continue
                    hb = height(b, tb[row].vertex, tb[row].longest)
                    sign = 1.0 if ha * hb > 0 else -1.0
                    if test(q, a, vertex, b, tb[row].vertex, cells, sign, owner, d2):
                        return
                    # a nearly straight triangle does not tell its orientation
                    if fmin(fabs(ha), fabs(hb)) < 2 * q.tolerance and test(
                            q, a, vertex, b, tb[row].vertex, cells, -sign, owner, d2):
                        return
                    if q.budget <= 0:
                        return


def search(const double[:, ::1] a, const double[:, ::1] b, double tolerance, double low, double high, double shortest,
           double smallest, double largest, Py_ssize_t room, Py_ssize_t budget, double stop):
    """Similarities from `a` to `b` that triangles propose and other stars confirm, best first: (n, 6) of c, s, tx, ty,
    parity and odds (the number of hypotheses not yet counted)."""
    cdef Cells cells = Cells(b, 1.5 * tolerance)
    cdef Py_ssize_t m = max(a.shape[0], b.shape[0]), i, k, na, nb
    cdef Py_ssize_t cells_of_shape = (BINS + 1) * (BINS + 1)
    cdef Search q
    cdef double expected
    cdef Triangle* ta = NULL
    cdef Triangle* tb = NULL
    cdef Py_ssize_t* start = NULL
    cdef Py_ssize_t* order = NULL
    cdef Py_ssize_t* owner = NULL
    cdef double* d2 = NULL
    q.tolerance, q.low, q.high, q.stop, q.budget, q.n_found = tolerance, low, high, stop, budget, 0
    room = min(room, m * (m - 1) * (m - 2) // 6)
    try:
        ta = <Triangle*>malloc(max(room, 1) * sizeof(Triangle))
        tb = <Triangle*>malloc(max(room, 1) * sizeof(Triangle))
        order = <Py_ssize_t*>malloc(max(room, 1) * sizeof(Py_ssize_t))
        start = <Py_ssize_t*>calloc(cells_of_shape + 2, sizeof(Py_ssize_t))
        owner = <Py_ssize_t*>malloc(max(m, 1) * sizeof(Py_ssize_t))
        d2 = <double*>malloc(max(m, 1) * sizeof(double))
        if not (ta and tb and order and start and owner and d2):
            raise MemoryError
        with nogil:
            q.density = b.shape[0] / extent(b)
            surround(a, q.box)
            # a candidate is refined where chance alone brings so many stars together in one of 100 at most
            expected = a.shape[0] * q.density * M_PI * (1.5 * tolerance) ** 2
            q.enough = 1
            while q.enough < expected or (
                    q.enough * log(expected) - expected - lgamma(q.enough + 1.0) > log(0.01)):
                q.enough += 1
            na = triangles(a, shortest, smallest, largest, ta, room)
            nb = triangles(b, shortest, smallest, largest, tb, room)
            for i in range(nb):
                start[shape_of(&tb[i]) + 2] += 1
            for i in range(1, cells_of_shape + 2):
                start[i] += start[i - 1]
            for i in range(nb):
                k = shape_of(&tb[i]) + 1
                order[start[k]] = i
                start[k] += 1
            compare(&q, a, b, cells, ta, na, tb, start, order, owner, d2)
        found = [(q.maps[i].c, q.maps[i].s, q.maps[i].tx, q.maps[i].ty, q.maps[i].parity, q.found[i])
                 for i in range(q.n_found)]
    finally:
        free(ta)
        free(tb)
        free(order)
        free(start)
        free(owner)
        free(d2)
    return np.array(sorted(found, key=lambda row: -row[5]), float).reshape(-1, 6)


cdef inline Py_ssize_t shape_of(const Triangle* t) noexcept nogil:
    return <Py_ssize_t>(t.u * BINS) * (BINS + 1) + <Py_ssize_t>(t.v * BINS)


def refine(const double[:, ::1] a, const double[:, ::1] b, const double[::1] start, double tolerance):
    """A similarity (c, s, tx, ty, parity) refined on the pairs that it brings together: the similarity, the pairs'
    rows within `tolerance`, and their odds (the number of hypotheses not yet counted)."""
    cdef Cells cells = Cells(b, 4 * tolerance)
    cdef Py_ssize_t[::1] owner = np.empty(max(b.shape[0], 1), np.intp)
    cdef double[::1] d2 = np.empty(max(b.shape[0], 1))
    cdef Fit fit
    cdef double score
    cdef Py_ssize_t j, n = 0
    fit.map.c, fit.map.s, fit.map.tx, fit.map.ty, fit.map.parity = start[0], start[1], start[2], start[3], start[4]
    with nogil:
        score = judge(&fit, a, b, cells, tolerance, b.shape[0] / extent(b), True, &owner[0], &d2[0])
        if score == -INFINITE:
            n = pair_up(&fit.map, a, cells, tolerance, &owner[0], &d2[0])
        else:
            for j in range(b.shape[0]):
                if owner[j] < -1:
                    owner[j] = -2 - owner[j]
                n += owner[j] >= 0
    similarity = np.array([fit.map.c, fit.map.s, fit.map.tx, fit.map.ty, fit.map.parity])
    return similarity, rows(owner, a.shape[0], b.shape[0], n), score


def nearest_pairs(const double[:, ::1] a, const double[:, ::1] b, double radius):
    """Rows (n, 2) of the points of `a` and `b` nearest to each other within `radius`, one to one."""
    cdef Cells cells = Cells(b, radius)
    cdef Py_ssize_t[::1] owner = np.empty(max(b.shape[0], 1), np.intp)
    cdef double[::1] d2 = np.empty(max(b.shape[0], 1))
    cdef Similarity unit
    cdef Py_ssize_t n
    unit.c, unit.s, unit.tx, unit.ty, unit.parity = 1, 0, 0, 0, 1
    with nogil:
        n = pair_up(&unit, a, cells, radius, &owner[0], &d2[0])
    return rows(owner, a.shape[0], b.shape[0], n)


cdef rows(Py_ssize_t[::1] owner, Py_ssize_t na, Py_ssize_t nb, Py_ssize_t n):
    """(n, 2) rows of the pairs, in the order of the first list."""
    index = np.empty((n, 2), np.intp)
    cdef Py_ssize_t[:, ::1] out = index
    cdef Py_ssize_t[::1] partner = np.empty(na, np.intp)
    cdef Py_ssize_t i, j, k = 0
    for i in range(na):
        partner[i] = -1
    for j in range(nb):
        if owner[j] >= 0:
            partner[owner[j]] = j
    for i in range(na):
        if partner[i] >= 0:
            out[k, 0], out[k, 1] = i, partner[i]
            k += 1
    return index


def pairs_of_sky(const double[:, ::1] predicted, const double[:, ::1] a, const double[:, ::1] b, double radius,
                 double sigma):
    """`nearest_pairs` of `predicted`, where a map puts `a`, and `b`; without pairs at one detector position (within
    3 `sigma`) that the map moves (by more than 6): these are hot pixels."""
    index = nearest_pairs(predicted, b, radius)
    cdef const Py_ssize_t[:, ::1] pair = index
    keep = np.empty(pair.shape[0], np.uint8)
    cdef unsigned char[::1] moving = keep
    cdef Py_ssize_t i, j, k, n = 0
    for k in range(pair.shape[0]):
        i, j = pair[k, 0], pair[k, 1]
        moving[k] = not (hypot(b[j, 0] - a[i, 0], b[j, 1] - a[i, 1]) < 3 * sigma
                         and hypot(predicted[i, 0] - a[i, 0], predicted[i, 1] - a[i, 1]) > 6 * sigma)
        n += moving[k]
    return index if n == pair.shape[0] else index[keep.view(bool)]


def usable_rows(const double[:, ::1] xy, flags, int unwanted):
    """Rows of finite positions without any of the `unwanted` flags, where there are flags."""
    cdef const unsigned short[::1] flag = flags
    rows = np.empty(xy.shape[0], np.intp)
    cdef Py_ssize_t[::1] out = rows
    cdef Py_ssize_t i, n = 0
    for i in range(xy.shape[0]):
        if isfinite(xy[i, 0]) and isfinite(xy[i, 1]) and (flag is None or not flag[i] & unwanted):
            out[n] = i
            n += 1
    return rows[:n]


def box(const double[:, ::1] xy):
    """Smallest upright rectangle around points: low x, low y, high x, high y."""
    cdef double[4] around
    surround(xy, around)
    return around[0], around[1], around[2], around[3]


def interquartile(const double[:, ::1] xy):
    """Range (x, y) that the middle half of the finite points spans along each axis."""
    cdef double[::1] room = np.empty(xy.shape[0])
    cdef double[2] low, high
    cdef Py_ssize_t i, n = 0
    cdef int axis
    for axis in range(2):
        n = 0
        for i in range(xy.shape[0]):
            if isfinite(xy[i, 0]) and isfinite(xy[i, 1]):
                room[n] = xy[i, axis]
                n += 1
        if n == 0:
            return 0.0, 0.0
        select(&room[0], n, n // 4)
        low[axis] = room[n // 4]
        select(&room[0], n, n - 1 - n // 4)
        high[axis] = room[n - 1 - n // 4]
    return high[0] - low[0], high[1] - low[1]


def commonest_shift(const double[:, ::1] a, const double[:, ::1] b, double radius, double step):
    """Shift (dx, dy) within `radius` that brings most points of `a` near points of `b`: the fullest of the
    squares of two steps' side, the smaller shift winning a draw."""
    cdef Cells cells = Cells(b, radius)
    cdef Py_ssize_t half = <Py_ssize_t>(radius / step) + 1, side = 2 * half + 1, i, j, k, u, v, total, best = -1
    cdef Py_ssize_t bu = half, bv = half
    cdef Py_ssize_t[:, ::1] votes = np.zeros((side + 1, side + 1), np.intp)
    cdef Py_ssize_t box[4]
    cdef double dx, dy
    with nogil:
        for i in range(a.shape[0]):
            if not cells.window(a[i, 0], a[i, 1], radius, box):
                continue
            for j in range(box[2], box[3] + 1):
                for k in range(cells.start[j * cells.nx + box[0]], cells.start[j * cells.nx + box[1] + 1]):
                    dx, dy = cells.xy[k, 0] - a[i, 0], cells.xy[k, 1] - a[i, 1]
                    if dx * dx + dy * dy <= radius * radius:
                        votes[<Py_ssize_t>floor(dy / step) + half, <Py_ssize_t>floor(dx / step) + half] += 1
        for v in range(side):
            for u in range(side):
                total = votes[v, u] + votes[v + 1, u] + votes[v, u + 1] + votes[v + 1, u + 1]
                if total > best or (total == best and (u + 1 - half) ** 2 + (v + 1 - half) ** 2
                                    < (bu + 1 - half) ** 2 + (bv + 1 - half) ** 2):
                    best, bu, bv = total, u, v
    return (bu + 1 - half) * step, (bv + 1 - half) * step
