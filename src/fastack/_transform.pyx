# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, freethreading_compatible=True
"""Loops over pairs of stars: the fit of a map to them, clipped, of the order that they justify."""

from libc.math cimport NAN, exp, fabs, fmax, fmin, hypot, isfinite, lgamma, log, log1p, sqrt
from libc.stdlib cimport free, malloc

import numpy as np

from fastack._levels cimport middle
from fastack._maps cimport WIDEST, monomials
from fastack._match cimport INFINITE, Fit, apply, least_squares

cdef enum:
    SHIFT = 0
    SIMILARITY = 1
    AFFINE = 2
    CUBIC = 4

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


cdef Py_ssize_t count(const unsigned char* mask, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i, total = 0
    for i in range(n):
        total += mask[i]
    return total


cdef inline void rotate_away(double difference, double product, double* cos, double* sin) noexcept nogil:
    """The smaller of Jacobi's rotations that bring a product of two axes to zero; difference of their squares."""
    cdef double t = difference / (2 * product)
    t = (1.0 if t >= 0 else -1.0) / (fabs(t) + sqrt(t * t + 1))
    cos[0] = 1 / sqrt(t * t + 1)
    sin[0] = t * cos[0]


cdef void eigen(double* a, double* v, int m) noexcept nogil:
    """Cyclic Jacobi: the eigenvalues of a symmetric matrix on its diagonal, the vectors in the columns of `v`."""
    cdef int _sweep, p, q, k
    cdef double apq, c, s, x, y
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
                rotate_away(a[q * m + q] - a[p * m + p], apq, &c, &s)
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
    cdef double alpha, beta, gamma, cos, sin, x, y, largest = 0, px, py
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
                rotate_away(beta - alpha, gamma, &cos, &sin)
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
