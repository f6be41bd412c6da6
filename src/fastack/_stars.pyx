# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Loops over lists of stars: triangles, votes, pairs, and the fit of a map to the pairs."""

from libc.math cimport M_PI, NAN, exp, fabs, floor, fmax, fmin, hypot, isfinite, lgamma, log, log1p, sqrt
from libc.stdlib cimport calloc, free, malloc

import numpy as np

# --- match

cdef double FLOOR = 0.05  # pixel; no two lists of stars agree better than that, whatever their residuals say
cdef double INFINITE = 1e300


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


cdef inline void apply(const Similarity* t, double x, double y, double* u, double* v) noexcept nogil:
    u[0] = t.c * x - t.s * t.parity * y + t.tx
    v[0] = t.s * x + t.c * t.parity * y + t.ty


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


def rough_fit(const double[:, ::1] a, const double[:, ::1] b, double clip):
    """Similarity through pairs that a similarity has brought together: (c, s, tx, ty, parity), the robust sigma of
    its distances, and which pairs lie within `clip` of these."""
    cdef Py_ssize_t i, n = a.shape[0]
    cdef Py_ssize_t[::1] owner = np.arange(n)
    cdef double[:, ::1] distance2 = np.empty((2, n))
    cdef double[::1] room = np.empty(n)
    inside = np.empty(n, np.uint8)
    cdef unsigned char[::1] near = inside
    cdef Fit[2] fits
    cdef double[2] medians
    cdef double x, y, sigma = 0
    cdef int k, _round
    with nogil:
        for _round in range(2):
            for k in range(2):
                medians[k] = INFINITE
                if not least_squares(a, b, &owner[0], 1.0 - 2.0 * k, &fits[k]):
                    continue
                for i in range(n):
                    apply(&fits[k].map, a[i, 0], a[i, 1], &x, &y)
                    distance2[k, i] = (b[i, 0] - x) ** 2 + (b[i, 1] - y) ** 2
                    room[i] = distance2[k, i]
                medians[k] = sqrt(middle(&room[0], n))
            k = 0 if medians[0] <= medians[1] else 1
            sigma = fmax(medians[k] * TO_SIGMA, FINEST)
            for i in range(n):
                near[i] = distance2[k, i] <= clip * clip * sigma * sigma
                owner[i] = i if near[i] else -1
    similarity = np.array([fits[k].map.c, fits[k].map.s, fits[k].map.tx, fits[k].map.ty, fits[k].map.parity])
    return similarity, sigma, inside.view(bool)


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


# --- transform

cdef enum:
    SHIFT = 0
    SIMILARITY = 1
    AFFINE = 2
    CUBIC = 4
    WIDEST = 10  # terms of a cubic

# of each model: shift, similarity, affine, quadratic, cubic
cdef int[5] TERMS = [3, 3, 3, 6, 10]  # of one axis
cdef int[5] FREE = [2, 4, 6, 12, 20]  # parameters of both axes
cdef int[5] ENOUGH = [2, 3, 6, 9, 15]  # stars for the automatic choice
cdef double[5] SPREAD = [0, 0, 0.03, 0.01, 0.005]  # least to greatest singular value of the design
# of the F test by which a model is taken: stricter where a wrong choice costs more at the edges of the field
cdef double[5] SIGNIFICANCE = [0, 3e-3, 1e-2, 1e-3, 3e-4]
cdef double FROM_SHIFT = 0.1  # factor to it where a shift would do: its two numbers are known best of all
cdef double WITHOUT_ONE = 0.1  # the same with any one star left out: an outlier of great leverage must not decide
cdef double WORTH = 1.3  # errors by which a higher model must move the edges of the stars' area
cdef int MANY = 40  # stars from which on one look at the residuals tells whether higher models are worth fitting
cdef double HOPELESS = 30.0  # times the significance that a model needs, above which it is not tried
cdef double UNLIKELY = 1e-5  # probability of chi^2 from which the given errors are called too small
cdef double FINEST = 1e-4  # pixel: differences below it justify nothing
cdef int ROUNDS = 20  # of clipping
cdef double TO_SIGMA = 1 / 1.1774  # of the median distance of a two-dimensional normal law


cdef struct Sample:
    Py_ssize_t n
    double* basis  # (n, 10) monomials of the normalised reference positions
    const double* b  # (n, 2) frame positions
    const double* variance  # (n,) pixel^2; ones where the errors are unknown
    bint known
    double clip
    double x0  # origin and scale of the normalised positions
    double y0
    double scale
    double parity
    double* squared  # the rest is room to work in
    double* leverage
    double* other
    double* some
    double* wide  # (10, n)
    unsigned char* mask


cdef struct Solution:
    int model
    double[20] c  # (m, 2)
    unsigned char* keep  # stars behind it
    unsigned char* near  # stars that a higher model starts from: twice the clipping limit
    double* variance  # of a position per axis, the floor included


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


cdef Py_ssize_t count(const unsigned char* mask, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, total = 0
    for i in range(n):
        total += mask[i]
    return total


cdef void eigen(double* a, double* v, int m) noexcept nogil:
    """Cyclic Jacobi: the eigenvalues of a symmetric matrix on its diagonal, the vectors in the columns of `v`."""
    cdef int _sweep, p, q, k
    cdef double apq, t, c, s, x, y
    cdef bint done
    for p in range(m):
        for q in range(m):
            v[p * m + q] = p == q
    for _sweep in range(40):
        done = True
        for p in range(m - 1):
            for q in range(p + 1, m):
                apq = a[p * m + q]
                if fabs(apq) <= 1e-17 * sqrt(fabs(a[p * m + p] * a[q * m + q])):
                    continue
                done = False
                t = (a[q * m + q] - a[p * m + p]) / (2 * apq)
                t = (1.0 if t >= 0 else -1.0) / (fabs(t) + sqrt(t * t + 1))
                c = 1 / sqrt(t * t + 1)
                s = t * c
                for k in range(m):
                    x, y = a[k * m + p], a[k * m + q]
                    a[k * m + p], a[k * m + q] = c * x - s * y, s * x + c * y
                for k in range(m):
                    x, y = a[p * m + k], a[q * m + k]
                    a[p * m + k], a[q * m + k] = c * x - s * y, s * x + c * y
                a[p * m + q] = a[q * m + p] = 0
                for k in range(m):
                    x, y = v[k * m + p], v[k * m + q]
                    v[k * m + p], v[k * m + q] = c * x - s * y, s * x + c * y
        if done:
            return


cdef void invert(double* a, double* out, int m) noexcept nogil:
    """Pseudo-inverse of a symmetric matrix, which is lost."""
    cdef double[100] v
    cdef double largest = 0, factor
    cdef int i, j, k
    eigen(a, v, m)
    for k in range(m):
        largest = fmax(largest, fabs(a[k * m + k]))
    for i in range(m * m):
        out[i] = 0
    for k in range(m):
        if fabs(a[k * m + k]) > 1e-15 * largest:
            for i in range(m):
                factor = v[i * m + k] / a[k * m + k]
                for j in range(m):
                    out[i * m + j] += factor * v[j * m + k]


cdef bint cholesky(double* a, int m) noexcept nogil:
    """The lower root of a matrix in its place; False where it is not positive definite."""
    cdef int i, j, k
    cdef double total
    for j in range(m):
        for i in range(j, m):
            total = a[i * m + j]
            for k in range(j):
                total -= a[i * m + k] * a[j * m + k]
            if i > j:
                a[i * m + j] = total / a[j * m + j]
            elif total > 0:
                a[j * m + j] = sqrt(total)
            else:
                return False
    return True


cdef void forward(const double* root, double* x, int m) noexcept nogil:
    """root y = x for two right sides."""
    cdef int i, k
    for i in range(m):
        for k in range(i):
            x[2 * i] -= root[i * m + k] * x[2 * k]
            x[2 * i + 1] -= root[i * m + k] * x[2 * k + 1]
        x[2 * i] /= root[i * m + i]
        x[2 * i + 1] /= root[i * m + i]


cdef void backward(const double* root, double* x, int m) noexcept nogil:
    """root^T y = x for two right sides."""
    cdef int i, k
    for i in range(m - 1, -1, -1):
        for k in range(i + 1, m):
            x[2 * i] -= root[k * m + i] * x[2 * k]
            x[2 * i + 1] -= root[k * m + i] * x[2 * k + 1]
        x[2 * i] /= root[i * m + i]
        x[2 * i + 1] /= root[i * m + i]


cdef void normal_equations(const Sample* f, int m, const unsigned char* keep, const double* variance, double* matrix,
                           double* moment) noexcept nogil:
    """Weighted products of the terms of the stars in `keep`, and those with their positions where these are asked
    for; without variances all weigh the same."""
    cdef Py_ssize_t i
    cdef int j, k
    cdef double w, weight
    cdef const double* row
    for k in range(m * m):
        matrix[k] = 0
    if moment != NULL:
        for k in range(2 * m):
            moment[k] = 0
    for i in range(f.n):
        if not keep[i]:
            continue
        row = f.basis + WIDEST * i
        weight = 1 if variance == NULL else 1 / variance[i]
        for j in range(m):
            w = row[j] * weight
            for k in range(j + 1):
                matrix[j * m + k] += w * row[k]
            if moment != NULL:
                moment[2 * j] += w * f.b[2 * i]
                moment[2 * j + 1] += w * f.b[2 * i + 1]
    for j in range(m):
        for k in range(j):
            matrix[k * m + j] = matrix[j * m + k]


cdef bint well_spread(const Sample* f, int model, const unsigned char* keep) noexcept nogil:
    """Whether the stars are spread over the field well enough for a model."""
    cdef double[100] a, v
    cdef int k, m = TERMS[model]
    cdef double least = INFINITE, most = -INFINITE
    if SPREAD[model] == 0:
        return True
    normal_equations(f, m, keep, NULL, a, NULL)
    eigen(a, v, m)
    for k in range(m):
        least, most = fmin(least, a[k * m + k]), fmax(most, a[k * m + k])
    return least > SPREAD[model] * SPREAD[model] * most


cdef void least_norm(Sample* f, int m, const unsigned char* keep, const double* variance, double* c) noexcept nogil:
    """Weighted least squares of few or badly spread stars, by the singular values of the design (one-sided Jacobi)."""
    cdef double[100] v
    cdef double[10] size
    cdef double* a = f.wide  # columns one after the other
    cdef double alpha, beta, gamma, t, cos, sin, x, y, largest = 0, px, py
    cdef Py_ssize_t i, r, rows = count(keep, f.n)
    cdef int p, q, k, _sweep
    cdef bint done
    for p in range(m):
        r = 0
        for i in range(f.n):
            if keep[i]:
                a[p * rows + r] = f.basis[WIDEST * i + p] / sqrt(variance[i])
                r += 1
        for q in range(m):
            v[p * m + q] = p == q
    for _sweep in range(40):
        done = True
        for p in range(m - 1):
            for q in range(p + 1, m):
                alpha = beta = gamma = 0
                for r in range(rows):
                    alpha += a[p * rows + r] * a[p * rows + r]
                    beta += a[q * rows + r] * a[q * rows + r]
                    gamma += a[p * rows + r] * a[q * rows + r]
                if fabs(gamma) <= 1e-16 * sqrt(alpha * beta):
                    continue
                done = False
                t = (beta - alpha) / (2 * gamma)
                t = (1.0 if t >= 0 else -1.0) / (fabs(t) + sqrt(t * t + 1))
                cos = 1 / sqrt(t * t + 1)
                sin = t * cos
                for r in range(rows):
                    x, y = a[p * rows + r], a[q * rows + r]
                    a[p * rows + r], a[q * rows + r] = cos * x - sin * y, sin * x + cos * y
                for k in range(m):
                    x, y = v[k * m + p], v[k * m + q]
                    v[k * m + p], v[k * m + q] = cos * x - sin * y, sin * x + cos * y
        if done:
            break
    for p in range(m):
        size[p] = 0
        for r in range(rows):
            size[p] += a[p * rows + r] * a[p * rows + r]
        largest = fmax(largest, size[p])
        c[2 * p] = c[2 * p + 1] = 0
    for p in range(m):
        if size[p] <= (2.22e-16 * max(rows, m)) ** 2 * largest:
            continue
        px = py = 0
        r = 0
        for i in range(f.n):
            if keep[i]:
                px += a[p * rows + r] * f.b[2 * i] / sqrt(variance[i])
                py += a[p * rows + r] * f.b[2 * i + 1] / sqrt(variance[i])
                r += 1
        for k in range(m):
            c[2 * k] += v[k * m + p] * px / size[p]
            c[2 * k + 1] += v[k * m + p] * py / size[p]


cdef void solve(Sample* f, int model, const unsigned char* keep, const double* variance, double* c) noexcept nogil:
    """Coefficients (m, 2) by weighted least squares."""
    cdef double[100] a
    cdef double w, total = 0, mu = 0, mv = 0, mx = 0, my = 0, x, y, u, v, size = 0, cos = 0, sin = 0
    cdef Py_ssize_t i
    cdef int m = TERMS[model]
    if model <= SIMILARITY:
        for i in range(f.n):
            if not keep[i]:
                continue
            w = 1 / variance[i]
            total += w
            mu, mv = mu + w * f.basis[WIDEST * i + 1], mv + w * f.basis[WIDEST * i + 2]
            mx, my = mx + w * f.b[2 * i], my + w * f.b[2 * i + 1]
        mu, mv, mx, my = mu / total, mv / total, mx / total, my / total
        if model == SHIFT:
            c[0], c[1] = mx - mu * f.scale, my - mv * f.scale
            c[2], c[3], c[4], c[5] = f.scale, 0, 0, f.scale
            return
        for i in range(f.n):
            if not keep[i]:
                continue
            w = 1 / variance[i]
            x, y = f.basis[WIDEST * i + 1] - mu, (f.basis[WIDEST * i + 2] - mv) * f.parity
            u, v = f.b[2 * i] - mx, f.b[2 * i + 1] - my
            size += w * (x * x + y * y)
            cos += w * (x * u + y * v)
            sin += w * (x * v - y * u)
        cos, sin = cos / size, sin / size
        c[2], c[3], c[4], c[5] = cos, sin, -f.parity * sin, f.parity * cos
        c[0], c[1] = mx - mu * c[2] - mv * c[4], my - mu * c[3] - mv * c[5]
        return
    if count(keep, f.n) > 5 * m and well_spread(f, model, keep):
        normal_equations(f, m, keep, variance, a, c)
        if cholesky(a, m):
            forward(a, c, m)
            backward(a, c, m)
            return
    least_norm(f, m, keep, variance, c)


cdef void residuals(const Sample* f, int model, const double* c, double* squared) noexcept nogil:
    """Squared distances of all stars from where a model puts them."""
    cdef Py_ssize_t i
    cdef int k
    cdef double x, y
    for i in range(f.n):
        x, y = f.b[2 * i], f.b[2 * i + 1]
        for k in range(TERMS[model]):
            x -= f.basis[WIDEST * i + k] * c[2 * k]
            y -= f.basis[WIDEST * i + k] * c[2 * k + 1]
        squared[i] = x * x + y * y


cdef void leverage(const Sample* f, int model, const unsigned char* keep, const double* variance,
                   double* out) noexcept nogil:
    """Variance of the fit at every star, over the star's own."""
    cdef double[100] a, inverse
    cdef double w, total = 0, mu = 0, mv = 0, size = 0, u, v, value
    cdef Py_ssize_t i
    cdef int j, k, m = TERMS[model]
    cdef const double* row
    if model <= SIMILARITY:
        for i in range(f.n):
            if keep[i]:
                w = 1 / variance[i]
                total += w
                mu, mv = mu + w * f.basis[WIDEST * i + 1], mv + w * f.basis[WIDEST * i + 2]
        mu, mv = mu / total, mv / total
        for i in range(f.n):
            u, v = f.basis[WIDEST * i + 1] - mu, f.basis[WIDEST * i + 2] - mv
            out[i] = u * u + v * v
            if keep[i]:
                size += out[i] / variance[i]
        for i in range(f.n):
            out[i] = (1 / total + (out[i] / size if model == SIMILARITY else 0)) / variance[i]
        return
    normal_equations(f, m, keep, variance, a, NULL)
    invert(a, inverse, m)
    for i in range(f.n):
        row = f.basis + WIDEST * i
        out[i] = 0
        for j in range(m):
            value = 0
            for k in range(m):
                value += inverse[j * m + k] * row[k]
            out[i] += row[j] * value
        out[i] /= variance[i]


cdef void clip_stars(Sample* f, Solution* s) noexcept nogil:
    """Fit and clip until the set of stars stays."""
    cdef Py_ssize_t i, k, inside
    cdef int _round
    cdef double limit = 0, h
    cdef bint same
    for _round in range(ROUNDS):
        solve(f, s.model, s.keep, s.variance, s.c)
        residuals(f, s.model, s.c, f.squared)
        leverage(f, s.model, s.keep, s.variance, f.leverage)
        k = 0
        for i in range(f.n):
            h = f.leverage[i]
            # the error of a residual: below the star's own for the stars behind the fit, above for others
            h = fmax(1 - h, 0.05) if s.keep[i] else 1 + h
            f.squared[i] = sqrt(f.squared[i]) / sqrt(s.variance[i]) / sqrt(h)
            if s.keep[i]:
                f.other[k] = f.squared[i]
                k += 1
        limit = f.clip * fmax(middle(f.other, k) * TO_SIGMA, 1.0 if f.known else FINEST)
        inside, same = 0, True
        for i in range(f.n):
            f.mask[i] = f.squared[i] <= limit
            s.near[i] = f.squared[i] <= 2 * limit
            inside += f.mask[i]
            same &= f.mask[i] == s.keep[i]
        if same or 2 * inside < max(FREE[s.model], 3):
            return
        for i in range(f.n):
            s.keep[i] = f.mask[i]
    solve(f, s.model, s.keep, s.variance, s.c)


cdef double error_floor(Sample* f, Solution* s) noexcept nogil:
    """Variance to add to all stars so that chi^2 is no larger than it should be (Paule & Mandel 1982)."""
    cdef Py_ssize_t i, n = count(s.keep, f.n), free_ = 2 * n - FREE[s.model]
    cdef int _step
    cdef double chi2 = 0, total = 0, low = 0, high, mid
    residuals(f, s.model, s.c, f.squared)
    for i in range(f.n):
        if s.keep[i]:
            chi2 += f.squared[i] / f.variance[i]
            total += f.squared[i]
    if free_ <= 0 or chi2_tail(free_, chi2) > UNLIKELY:
        return 0
    high = total / free_
    for _step in range(40):
        mid = (low + high) / 2
        chi2 = 0
        for i in range(f.n):
            if s.keep[i]:
                chi2 += f.squared[i] / (f.variance[i] + mid)
        if chi2 > free_:
            low = mid
        else:
            high = mid
    return high


cdef void settle(Sample* f, int model, const unsigned char* start, Solution* s) noexcept nogil:
    """Fit and clip; again with a floor on the errors, if they need one."""
    cdef Py_ssize_t i
    cdef double floor_
    s.model = model
    for i in range(f.n):
        s.keep[i], s.variance[i] = start[i], f.variance[i]
    clip_stars(f, s)
    floor_ = error_floor(f, s) if f.known else 0
    if floor_ > 0:
        for i in range(f.n):
            s.variance[i] += floor_
        clip_stars(f, s)


cdef double chi2_without_one(Sample* f, int model, const double* c, const Solution* s, double* some) noexcept nogil:
    """Chi^2, and that of the fits that leave out one star each (Cook & Weisberg 1982, ch. 2)."""
    cdef Py_ssize_t i
    cdef double total = 0
    residuals(f, model, c, f.squared)
    leverage(f, model, s.keep, s.variance, f.leverage)
    for i in range(f.n):
        if s.keep[i]:
            total += (f.squared[i] + 2 * FINEST * FINEST) / s.variance[i]
    for i in range(f.n):
        if s.keep[i]:
            some[i] = total - f.squared[i] / s.variance[i] / fmax(1 - f.leverage[i], 1e-9)
            some[i] = fmax(some[i], 1e-12 * total)
    return total


cdef double limit_of(int lower, int higher) noexcept nogil:
    return SIGNIFICANCE[higher] * (FROM_SHIFT if lower == SHIFT else 1)


cdef void monomials(double u, double v, double* out) noexcept nogil:
    out[0], out[1], out[2], out[3], out[4], out[5] = 1, u, v, u * u, u * v, v * v
    out[6], out[7], out[8], out[9] = u * u * u, u * u * v, u * v * v, v * v * v


cdef bint better(Sample* f, int lower, const Solution* s) noexcept nogil:
    """Whether a higher model is worth its terms."""
    cdef double[20] low
    cdef double[100] covariance_
    cdef double[10] edge
    cdef double all_low, all_high, gain, least = INFINITE, u = 0, v = 0, x, y, moved = 0, error = 0
    cdef Py_ssize_t i
    cdef int more = FREE[s.model] - FREE[lower], j, k, corner, m = TERMS[s.model]
    cdef Py_ssize_t free_ = 2 * count(s.keep, f.n) - FREE[s.model]
    if free_ < 3:
        return False
    solve(f, lower, s.keep, s.variance, low)
    all_low = chi2_without_one(f, lower, low, s, f.other)
    all_high = chi2_without_one(f, s.model, s.c, s, f.some)
    gain = fmax(all_low - all_high, 0) / all_high * free_ / more
    for i in range(f.n):
        if s.keep[i]:
            least = fmin(least, fmax(f.other[i] - f.some[i], 0) / f.some[i])
        u, v = fmax(u, fabs(f.basis[WIDEST * i + 1])), fmax(v, fabs(f.basis[WIDEST * i + 2]))
    least = least * (free_ - 2) / more
    if f_tail(more, free_, gain) > limit_of(lower, s.model) or f_tail(more, free_ - 2, least) > WITHOUT_ONE:
        return False
    # what a few bright stars ask for must not be carried to the edges where it is worth nothing
    covariance(f, s, covariance_)
    for corner in range(4):
        monomials(u if corner & 1 else -u, v if corner & 2 else -v, edge)
        x = y = 0
        for k in range(m):
            x, y = x + edge[k] * s.c[2 * k], y + edge[k] * s.c[2 * k + 1]
            for j in range(m):
                error += edge[j] * covariance_[j * m + k] * edge[k]
        for k in range(TERMS[lower]):
            x, y = x - edge[k] * low[2 * k], y - edge[k] * low[2 * k + 1]
        moved += x * x + y * y
    return moved > 2 * WORTH * WORTH * error


cdef bint hopeless(Sample* f, int lower, const Solution* s) noexcept nogil:
    """Whether no model above the one reached can be better, by far, than the lower one: of many stars alone."""
    cdef double[100] root
    cdef double[20] terms, c
    cdef double left, total = 0, low = 0, high, limit
    cdef Py_ssize_t i, k, n = 0, inside, free_
    cdef int model, more, _round, term
    for i in range(f.n):
        f.mask[i] = s.near[i]
    for _round in range(ROUNDS):
        n = count(f.mask, f.n)
        if n < MANY:
            return False
        normal_equations(f, WIDEST, f.mask, s.variance, root, terms)
        if not cholesky(root, WIDEST):  # the stars do not span the highest model
            return False
        forward(root, terms, WIDEST)
        for k in range(2 * WIDEST):
            c[k] = terms[k]
        backward(root, c, WIDEST)
        # wrong pairs make every model look bad: they are told by what the highest one leaves
        residuals(f, CUBIC, c, f.squared)
        k = 0
        for i in range(f.n):
            if f.mask[i]:
                f.some[i] = sqrt(f.squared[i] / s.variance[i])
                f.other[k] = f.some[i]
                k += 1
        limit = f.clip * middle(f.other, k) * TO_SIGMA
        inside = 0
        for i in range(f.n):
            inside += f.mask[i] & (f.some[i] <= limit)
        if inside == n or _round == ROUNDS - 1:
            break
        for i in range(f.n):
            f.mask[i] &= f.some[i] <= limit
    solve(f, lower, f.mask, s.variance, c)
    residuals(f, lower, c, f.squared)
    for i in range(f.n):
        if f.mask[i]:
            low += f.squared[i] / s.variance[i]
            total += (f.b[2 * i] * f.b[2 * i] + f.b[2 * i + 1] * f.b[2 * i + 1]) / s.variance[i]
    term = 0
    for model in range(s.model + 1, CUBIC + 1):
        while term < TERMS[model]:
            total -= terms[2 * term] * terms[2 * term] + terms[2 * term + 1] * terms[2 * term + 1]
            term += 1
        high = fmax(total, 1e-12 * low)
        more, free_ = FREE[model] - FREE[lower], 2 * n - FREE[model]
        if f_tail(more, free_, fmax(low - high, 0) / high * free_ / more) < HOPELESS * limit_of(lower, model):
            return False
    return True


cdef void covariance(const Sample* f, const Solution* s, double* out) noexcept nogil:
    """(m, m) covariance of one axis' coefficients."""
    cdef double[100] a, inverse
    cdef double[4] one, other
    cdef double w, total = 0, scale = 1
    cdef Py_ssize_t i, free_ = 2 * count(s.keep, f.n) - FREE[s.model]
    cdef int j, k, m = TERMS[s.model]
    cdef int[3] row = [0, 2, 3]
    cdef double[3] sign = [1, 1, -f.parity]
    if free_ > 0 and not f.known:
        residuals(f, s.model, s.c, f.squared)
        for i in range(f.n):
            if s.keep[i]:
                total += f.squared[i] / s.variance[i]
        scale = total / free_
    if s.model > SIMILARITY:
        normal_equations(f, m, s.keep, s.variance, a, NULL)
        invert(a, out, m)
        for k in range(m * m):
            out[k] *= scale
        return
    for k in range(16):
        a[k] = 0
    total = 0
    for i in range(f.n):
        if not s.keep[i]:
            continue
        w = 1 / s.variance[i]
        total += w
        # derivatives of both axes by tx, ty, cos, sin
        one[0], one[1], one[2], one[3] = 1, 0, f.basis[WIDEST * i + 1], -f.parity * f.basis[WIDEST * i + 2]
        other[0], other[1], other[2], other[3] = 0, 1, -one[3], one[2]
        for j in range(4):
            for k in range(4):
                a[j * 4 + k] += w * (one[j] * one[k] + other[j] * other[k])
    if s.model == SHIFT:
        for k in range(9):
            out[k] = 0
        out[0] = scale / total
        return
    invert(a, inverse, 4)
    for j in range(3):
        for k in range(3):
            out[j * 3 + k] = scale * sign[j] * sign[k] * inverse[row[j] * 4 + row[k]]


cdef Solution* climb(Sample* f, const unsigned char* start, Solution* best, Solution* higher) noexcept nogil:
    """The lowest model to which no higher one is clearly better."""
    cdef unsigned char* keep = <unsigned char*>f.wide  # read before anything is written there
    cdef Py_ssize_t i, n
    cdef int model, below = SHIFT
    cdef bint found = False
    for i in range(f.n):
        f.mask[i] = start[i]
    for model in range(SIMILARITY, CUBIC + 1):
        if count(f.mask, f.n) < ENOUGH[model] or not well_spread(f, model, f.mask):
            break
        for i in range(f.n):
            keep[i] = f.mask[i]
        settle(f, model, keep, higher)
        n = count(higher.keep, f.n)
        # where some pairs are wrong, others may be: the more stars must speak for a model
        if n >= ENOUGH[model] * (2 if n < 0.95 * f.n else 1) and better(f, below, higher):
            found, below = True, model
            best, higher = higher, best
            if hopeless(f, below, best):
                break
            for i in range(f.n):
                f.mask[i] = best.near[i]
            continue
        if hopeless(f, below, higher):
            break
        for i in range(f.n):
            f.mask[i] = higher.near[i]
    if found:
        return best
    for i in range(f.n):
        f.mask[i] = 1
    for i in range(f.n):
        keep[i] = f.mask[i]
    settle(f, SHIFT, keep, best)
    return best


cdef Solution* reach(Sample* f, int wanted, const unsigned char* start, Solution* s) noexcept nogil:
    """The model asked for, by way of the lower ones."""
    cdef unsigned char* keep = <unsigned char*>f.wide  # read before anything is written there
    cdef Py_ssize_t i, n = count(start, f.n)
    cdef int model
    for i in range(f.n):
        s.near[i] = start[i]
    for model in range(wanted + 1):
        if model == wanted or (model != SHIFT and n >= ENOUGH[model]):
            for i in range(f.n):
                keep[i] = s.near[i]
            settle(f, model, keep, s)
    return s


def near_prediction(const double[:, ::1] predicted, const double[:, ::1] b, double clip):
    """Which points lie where a first guess has put them: within 2 `clip` times the median of their distances."""
    cdef Py_ssize_t i, n = b.shape[0]
    cdef double[:, ::1] distance = np.empty((2, n))
    near = np.empty(n, np.uint8)
    cdef unsigned char[::1] out = near
    cdef double limit
    with nogil:
        for i in range(n):
            distance[0, i] = distance[1, i] = hypot(b[i, 0] - predicted[i, 0], b[i, 1] - predicted[i, 1])
        limit = 2 * clip * fmax(middle(&distance[1, 0], n), FINEST)
        for i in range(n):
            out[i] = distance[0, i] <= limit
    return near.view(bool)


cdef void add_errors(const double[::1] errors, double factor, double[::1] variance, double* room) noexcept nogil:
    """Add the squares of `factor` times the errors; NaN and 0 stand for the median of the others."""
    cdef Py_ssize_t i, k = 0
    cdef double usual, error
    for i in range(errors.shape[0]):
        if isfinite(errors[i]) and errors[i] > 0:
            room[k] = errors[i]
            k += 1
    usual = middle(room, k) if k else NAN
    for i in range(errors.shape[0]):
        error = factor * (errors[i] if isfinite(errors[i]) and errors[i] > 0 else usual)
        variance[i] += error * error


def variances(a, b, Py_ssize_t n, double factor):
    """Variance of n pairs by the errors of their positions in either list, those of the first one times `factor`
    (None where they are not known), and whether it is known; if not it is 1."""
    out = np.zeros(n)
    cdef double[::1] variance = out
    cdef double[::1] room = np.empty(max(n, 1))
    cdef Py_ssize_t i
    cdef bint known = True
    if a is not None:
        add_errors(a, factor, variance, &room[0])
    if b is not None:
        add_errors(b, 1.0, variance, &room[0])
    for i in range(n):
        known &= isfinite(variance[i]) and variance[i] > 0
    return (out, True) if known else (np.ones(n), False)


def fit_pairs(const double[:, ::1] a, const double[:, ::1] b, const double[::1] variance, bint known, double clip,
              double x0, double y0, double scale, double parity, const unsigned char[::1] start, int wanted):
    """Robust fit of a model (or, at -1, of the one that the residuals justify) to pairs of stars.

    Returns the model's number, its coefficients (m, 2) in ((x - x0) / scale, (y - y0) / scale), their covariance
    (m, m), the stars behind it and the sum of their squared residuals.
    """
    cdef Sample f
    cdef Solution[2] room
    cdef Solution* s = NULL
    cdef Py_ssize_t i, n = a.shape[0]
    cdef double total = 0
    cdef double[100] c
    cdef double* block = <double*>malloc(max(n, 1) * (2 * WIDEST + 6) * sizeof(double))
    cdef unsigned char* masks = <unsigned char*>malloc(max(n, 1) * 5)
    if block == NULL or masks == NULL or n == 0:
        free(block)
        free(masks)
        raise MemoryError
    try:
        with nogil:
            f.n, f.b, f.variance, f.known, f.clip = n, &b[0, 0], &variance[0], known, clip
            f.x0, f.y0, f.scale, f.parity = x0, y0, scale, parity
            f.basis, f.wide = block, block + WIDEST * n
            f.squared = block + 2 * WIDEST * n
            f.leverage, f.other, f.some = f.squared + n, f.squared + 2 * n, f.squared + 3 * n
            f.mask = masks
            for i in range(2):
                room[i].variance = f.squared + (4 + i) * n
                room[i].keep, room[i].near = masks + (1 + 2 * i) * n, masks + (2 + 2 * i) * n
            for i in range(n):
                monomials((a[i, 0] - x0) / scale, (a[i, 1] - y0) / scale, f.basis + WIDEST * i)
            if wanted < 0:
                s = climb(&f, &start[0], &room[0], &room[1])
            else:
                s = reach(&f, wanted, &start[0], &room[0])
            covariance(&f, s, c)
            residuals(&f, s.model, s.c, f.squared)
            for i in range(n):
                total += f.squared[i] if s.keep[i] else 0
        m = TERMS[s.model]
        terms = np.array([s.c[i] for i in range(2 * m)]).reshape(m, 2)
        spread = np.array([c[i] for i in range(m * m)]).reshape(m, m)
        keep = np.array(<unsigned char[:n]>s.keep).astype(bool)
        return s.model, terms, spread, keep, total
    finally:
        free(block)
        free(masks)


cpdef double f_tail(double m, double n, double f) noexcept nogil:
    """Probability that an F variable of m and n degrees of freedom exceeds `f`.

    The continued fraction of DLMF 8.17.22 by Lentz's method.
    """
    cdef double a = n / 2, b = m / 2, x, front, c, d, fraction, before, even, odd
    cdef bint swapped
    cdef int k
    if not f > 0:
        return 1
    x = n / (n + m * f)
    swapped = x > (a + 1) / (a + b + 2)
    if swapped:
        a, b, x = b, a, 1 - x
    if x <= 0:
        return 1 if swapped else 0
    front = exp(lgamma(a + b) - lgamma(a) - lgamma(b) + a * log(x) + b * log1p(-x)) / a
    c, d = 1, 1 / (1 - (a + b) * x / (a + 1))
    fraction = d
    for k in range(1, 1000):
        even = k * (b - k) * x / ((a + 2 * k - 1) * (a + 2 * k))
        odd = -(a + k) * (a + b + k) * x / ((a + 2 * k) * (a + 2 * k + 1))
        before = fraction
        c, d = 1 + even / c, 1 / (1 + even * d)
        fraction *= c * d
        c, d = 1 + odd / c, 1 / (1 + odd * d)
        fraction *= c * d
        if fabs(fraction - before) < 1e-12 * fabs(fraction):
            break
    return 1 - front * fraction if swapped else front * fraction


cpdef double chi2_tail(double n, double x) noexcept nogil:
    """Probability that chi^2 of n degrees of freedom exceeds `x`; 1 below n + 2, where it is above 0.08.

    The continued fraction of DLMF 8.9.2 by Lentz's method.
    """
    cdef double a = n / 2, b, c, d, fraction, term
    cdef int k
    x = x / 2
    if not x > a + 1:
        return 1
    if x > INFINITE:
        return 0
    b = x + 1 - a
    c, d = INFINITE, 1 / b
    fraction = d
    for k in range(1, 1000):
        term = -k * (k - a)
        b += 2
        d = 1 / (term * d + b)
        c = b + term / c
        fraction *= c * d
        if fabs(c * d - 1) < 1e-12:
            break
    return fraction * exp(-x + a * log(x) - lgamma(a))


# --- maps

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


# --- levels

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
