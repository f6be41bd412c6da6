# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, freethreading_compatible=True
"""Loops of the search on the sky: triangles of stars, and the odds of the place that a pair of triangles proposes."""

from libc.math cimport exp, fabs, log, sqrt

import numpy as np


cdef double PI = 3.14159265358979323846


def triangles(
    const double[:, ::1] xyz,
    const int[::1] start,
    const int[::1] neighbour,
    double min_side,
    double max_side,
    double min_ratio,
    Py_ssize_t limit,
):
    """Triangles of stars on the unit sphere whose sides (chords) lie between two limits.

    `neighbour[start[i]:start[i + 1]]` holds the rows j > i within `max_side` of i, ascending. A triangle comes
    as its three rows, each standing opposite the sides a >= b >= c in this order; as (b/a, c/a, ln a); and as the
    sense of rotation of the rows seen from outside. Flat ones (c/a < `min_ratio`, or nearly collinear) are left out.
    """
    cdef Py_ssize_t n = xyz.shape[0], i, p, q, m = 0
    cdef int j, k, v0, v1, v2
    cdef double ij, ik, jk, a, b, c, tiny = min_side * min_side, huge = max_side * max_side
    index_array = np.empty((limit, 3), np.int32)
    shape_array = np.empty((limit, 3), np.float64)
    sign_array = np.empty(limit, np.int8)
    cdef int[:, ::1] index = index_array
    cdef double[:, ::1] shape = shape_array
    cdef signed char[::1] sign = sign_array
    with nogil:
        for i in range(n):
            for p in range(start[i], start[i + 1]):
                j = neighbour[p]
                ij = _square(xyz, i, j)
                if ij < tiny:
                    continue
                for q in range(p + 1, start[i + 1]):
                    k = neighbour[q]
                    jk = _square(xyz, j, k)
                    if jk > huge or jk < tiny:
                        continue
                    ik = _square(xyz, i, k)
                    if ik < tiny:
                        continue
                    # v0, v1, v2 stand opposite a >= b >= c
                    a, b, c = jk, ik, ij
                    v0, v1, v2 = <int>i, j, k
                    if a < b:
                        a, b, v0, v1 = b, a, v1, v0
                    if b < c:
                        b, c, v1, v2 = c, b, v2, v1
                    if a < b:
                        a, b, v0, v1 = b, a, v1, v0
                    a, b, c = sqrt(a), sqrt(b), sqrt(c)
                    if c < min_ratio * a or b + c < 1.02 * a:
                        continue
                    if m == limit:
                        break
                    index[m, 0], index[m, 1], index[m, 2] = v0, v1, v2
                    shape[m, 0], shape[m, 1], shape[m, 2] = b / a, c / a, log(a)
                    sign[m] = 1 if _triple(xyz, v0, v1, v2) > 0 else -1
                    m += 1
    return index_array[:m], shape_array[:m], sign_array[:m]


def binned(
    const int[:, ::1] index,
    const double[:, ::1] shape,
    const signed char[::1] sign,
    const int[::1] rows,
    int bins,
):
    """Triangles from `triangles` in the order of their bin of (b/a, c/a) on a `bins` x `bins` grid over the unit square.

    `rows` is what the rows that they hold are called from now on. Returns the first triangle of each bin, and the last
    bin's end; then index, shape and sign in the new order. A counting sort: numpy's would take longer than the search.
    """
    cdef Py_ssize_t n = shape.shape[0], i, k
    cdef int code
    start_array = np.zeros(bins * bins + 1, np.int32)
    index_array = np.empty((n, 3), np.int32)
    shape_array = np.empty((n, 3), np.float64)
    sign_array = np.empty(n, np.int8)
    code_array = np.empty(n, np.int32)
    cdef int[::1] start = start_array, codes = code_array
    cdef int[:, ::1] new_index = index_array
    cdef double[:, ::1] new_shape = shape_array
    cdef signed char[::1] new_sign = sign_array
    cdef int[::1] place
    with nogil:
        for i in range(n):
            code = min(<int>(shape[i, 0] * bins), bins - 1) * bins + min(<int>(shape[i, 1] * bins), bins - 1)
            codes[i] = code
            start[code + 1] += 1
        for i in range(bins * bins):
            start[i + 1] += start[i]
    place = start_array[:-1].copy()
    with nogil:
        for i in range(n):
            k = place[codes[i]]
            place[codes[i]] += 1
            new_index[k, 0], new_index[k, 1], new_index[k, 2] = rows[index[i, 0]], rows[index[i, 1]], rows[index[i, 2]]
            new_shape[k, 0], new_shape[k, 1], new_shape[k, 2] = shape[i, 0], shape[i, 1], shape[i, 2]
            new_sign[k] = sign[i]
    return start_array, index_array, shape_array, sign_array


cdef inline double _square(const double[:, ::1] p, Py_ssize_t i, Py_ssize_t j) noexcept nogil:
    cdef double x = p[i, 0] - p[j, 0], y = p[i, 1] - p[j, 1], z = p[i, 2] - p[j, 2]
    return x * x + y * y + z * z


cdef inline double _triple(const double[:, ::1] p, Py_ssize_t i, Py_ssize_t j, Py_ssize_t k) noexcept nogil:
    return (
        p[i, 0] * (p[j, 1] * p[k, 2] - p[j, 2] * p[k, 1])
        + p[i, 1] * (p[j, 2] * p[k, 0] - p[j, 0] * p[k, 2])
        + p[i, 2] * (p[j, 0] * p[k, 1] - p[j, 1] * p[k, 0])
    )


cdef void _basis(const double* v, double* frame) noexcept nogil:
    """Orthonormal rows (e1, e2, direction of v), right-handed."""
    cdef double norm = sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    cdef double x = v[0] / norm, y = v[1] / norm, z = v[2] / norm, s
    if fabs(z) < 0.9:
        s = sqrt(x * x + y * y)
        frame[0], frame[1], frame[2] = -y / s, x / s, 0.0
    else:
        s = sqrt(y * y + z * z)
        frame[0], frame[1], frame[2] = 0.0, -z / s, y / s
    frame[3] = y * frame[2] - z * frame[1]
    frame[4] = z * frame[0] - x * frame[2]
    frame[5] = x * frame[1] - y * frame[0]
    frame[6], frame[7], frame[8] = x, y, z


cdef double _place(const double* camera, const double* sky, double ratio, double* h) noexcept nogil:
    """Map from camera coordinates (u, v, 1) to the sky's (x, y, z) that lays one triangle over the other.

    `camera` and `sky` are three unit vectors each, the camera's at the true scale and handedness already. The
    centroids are laid over each other and the turn about them is that of least squares. Returns the sum of squared
    distances of the three from their centroid.
    """
    cdef double centre_c[3]
    cdef double centre_s[3]
    cdef double bc[9]
    cdef double bs[9]
    cdef double re = 0, im = 0, spread = 0, norm, px, py, qx, qy
    cdef int i, j, k
    for i in range(3):
        centre_c[i] = camera[i] + camera[3 + i] + camera[6 + i]
        centre_s[i] = sky[i] + sky[3 + i] + sky[6 + i]
    _basis(centre_c, bc)
    _basis(centre_s, bs)
    for k in range(3):
        px = bc[0] * camera[3 * k] + bc[1] * camera[3 * k + 1] + bc[2] * camera[3 * k + 2]
        py = bc[3] * camera[3 * k] + bc[4] * camera[3 * k + 1] + bc[5] * camera[3 * k + 2]
        qx = bs[0] * sky[3 * k] + bs[1] * sky[3 * k + 1] + bs[2] * sky[3 * k + 2]
        qy = bs[3] * sky[3 * k] + bs[4] * sky[3 * k + 1] + bs[5] * sky[3 * k + 2]
        re += px * qx + py * qy
        im += px * qy - py * qx
        spread += px * px + py * py
    norm = sqrt(re * re + im * im)
    re, im = re / norm, im / norm
    # turn the camera's basis so that it answers the sky's
    for i in range(3):
        px, py = bc[i], bc[3 + i]
        bc[i], bc[3 + i] = re * px - im * py, im * px + re * py
    for i in range(3):
        for j in range(3):
            h[3 * i + j] = bs[i] * bc[j] + bs[3 + i] * bc[3 + j] + bs[6 + i] * bc[6 + j]
    return spread


def search(
    const double[:, ::1] camera,
    const int[:, ::1] camera_index,
    const double[:, ::1] camera_shape,
    const signed char[::1] camera_sign,
    const double[:, ::1] sky,
    const double[::1] density,
    const int[:, ::1] sky_index,
    const double[:, ::1] sky_shape,
    const signed char[::1] sky_sign,
    const int[::1] bin_start,
    int bins,
    const int[::1] cell_start,
    const int[::1] cell_star,
    double x0,
    double y0,
    double cell,
    int nx,
    int ny,
    double sigma,
    double min_tolerance,
    double log_low,
    double log_high,
    int parity,
    double distractors,
    double bail,
    double report,
    double sure,
    Py_ssize_t first,
):
    """Try every pair of like triangles as a place of the camera on the sky.

    Parameters
    ----------
    camera : (n, 2)
        Detections in the camera's tangent plane (radian at the level's nominal scale), brightest first.
    camera_index, camera_shape, camera_sign
        Triangles of them, from `triangles`, in the order in which they are tried.
    sky : (m, 3)
        Catalogue stars as unit vectors with the patch's centre at +z.
    density : (m,)
        Local number of catalogue stars per steradian.
    sky_index, sky_shape, sky_sign, bin_start, bins
        Triangles of them, ordered by the bin of (b/a, c/a) on a `bins` x `bins` grid over the unit square.
    cell_start, cell_star, x0, y0, cell, nx, ny
        The stars' tangent-plane positions in square cells.
    sigma : float
        Error of a position (detection and catalogue together), radian at the nominal scale.
    min_tolerance : float
        Of b/a and c/a: what distortion may change.
    log_low, log_high : float
        Limits of ln(true scale / nominal scale).
    parity : int
        +1 as on the sky, -1 mirrored, 0 either.
    distractors : float
        Part of the detections that no catalogue star answers.
    bail, report, sure : float
        Log odds below which a place is left, at which it is reported, at which the search pauses. The odds are
        the best that any number of the brightest detections gives: a catalogue may be shallow.
    first : int
        Triangle of the camera to begin with.

    Returns
    -------
    tuple
        Places as (k, 9) matrices (u, v, 1) -> (x, y, z), their log odds (k,), the triangle to go on with, and the
        number of places tried.
    """
    cdef Py_ssize_t n = camera.shape[0], t, s, row, tried = 0, pause = camera_index.shape[0]
    cdef int i, j, k, r, c, bx, by, r_low, r_high, c_low, c_high, cell_low, cell_high, cx, cy, star, best, relation
    cdef int stamp = 0
    cdef double tolerance, rb, rc, ratio, spread, cu, cv, u, v, x, y, z, dx, dy, d2, s2, best_d2, reach, a
    cdef double odds, best_odds
    cdef double miss = log(distractors)
    cdef double cam[9]
    cdef double tri[9]
    cdef double h[9]
    found_h = []
    found_odds = []
    used_array = np.zeros(sky.shape[0], np.int32)
    cdef int[::1] used = used_array
    for t in range(first, camera_index.shape[0]):
        a = exp(camera_shape[t, 2])
        rb, rc = camera_shape[t, 0], camera_shape[t, 1]
        tolerance = 2.5 * sigma / a
        if tolerance < min_tolerance:
            tolerance = min_tolerance
        r_low, r_high = <int>((rb - tolerance) * bins), <int>((rb + tolerance) * bins)
        c_low, c_high = <int>((rc - tolerance) * bins), <int>((rc + tolerance) * bins)
        r_low, c_low = max(r_low, 0), max(c_low, 0)
        r_high, c_high = min(r_high, bins - 1), min(c_high, bins - 1)
        for r in range(r_low, r_high + 1):
            for s in range(bin_start[r * bins + c_low], bin_start[r * bins + c_high + 1]):
                if fabs(sky_shape[s, 0] - rb) > tolerance or fabs(sky_shape[s, 1] - rc) > tolerance:
                    continue
                ratio = sky_shape[s, 2] - camera_shape[t, 2]
                if ratio < log_low or ratio > log_high:
                    continue
                # x east, y north, z outward is right-handed: the same sense of rotation means a mirrored image
                relation = -1 if camera_sign[t] == sky_sign[s] else 1
                if parity != 0 and parity != relation:
                    continue
                tried += 1
                stamp += 1
                ratio = exp(ratio)
                cu = cv = 0
                for k in range(3):
                    i = camera_index[t, k]
                    j = sky_index[s, k]
                    used[j] = stamp
                    u, v = camera[i, 0], camera[i, 1]
                    cu += u / 3
                    cv += v / 3
                    u, v = -relation * u * ratio, v * ratio
                    z = 1 / sqrt(1 + u * u + v * v)
                    cam[3 * k], cam[3 * k + 1], cam[3 * k + 2] = u * z, v * z, z
                    tri[3 * k], tri[3 * k + 1], tri[3 * k + 2] = sky[j, 0], sky[j, 1], sky[j, 2]
                spread = _place(cam, tri, ratio, h)
                for k in range(3):
                    h[3 * k] *= -relation * ratio
                    h[3 * k + 1] *= ratio
                odds = best_odds = 0
                for row in range(n):
                    if row == camera_index[t, 0] or row == camera_index[t, 1] or row == camera_index[t, 2]:
                        continue
                    u, v = camera[row, 0], camera[row, 1]
                    z = h[6] * u + h[7] * v + h[8]
                    if z < 0.1:
                        continue
                    x, y = (h[0] * u + h[1] * v + h[2]) / z, (h[3] * u + h[4] * v + h[5]) / z
                    bx, by = <int>((x - x0) / cell), <int>((y - y0) / cell)
                    if x < x0 or y < y0 or bx >= nx or by >= ny:
                        continue
                    s2 = ratio * ratio * sigma * sigma * (
                        4.0 / 3 + ratio * ratio * ((u - cu) * (u - cu) + (v - cv) * (v - cv)) / spread
                    )
                    reach = min(16 * s2, cell * cell)
                    best = -1
                    best_d2 = reach
                    for cy in range(max(by - 1, 0), min(by + 2, ny)):
                        cell_low, cell_high = cy * nx + max(bx - 1, 0), cy * nx + min(bx + 1, nx - 1) + 1
                        for cx in range(cell_start[cell_low], cell_start[cell_high]):
                            star = cell_star[cx]
                            dx, dy = sky[star, 0] / sky[star, 2] - x, sky[star, 1] / sky[star, 2] - y
                            d2 = dx * dx + dy * dy
                            if d2 < best_d2 and used[star] != stamp:
                                best_d2, best = d2, star
                    if best < 0:
                        odds += miss
                    else:
                        used[best] = stamp
                        odds += log(
                            distractors
                            + (1 - distractors) * exp(-0.5 * best_d2 / s2) / (2 * PI * s2 * density[best])
                        )
                    best_odds = max(best_odds, odds)
                    # a place that has earned something may lose half of it again before it is left
                    if odds < best_odds + bail - (0.5 * best_odds if best_odds < sure else 0.5 * sure):
                        break
                odds = best_odds
                if odds >= report:
                    found_h.append([h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7], h[8]])
                    found_odds.append(odds)
                    if odds >= sure:
                        pause = t + 1
        if pause == t + 1:
            break
    return np.array(found_h, float).reshape(-1, 9), np.array(found_odds, float), pause, tried
