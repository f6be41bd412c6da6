// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of
// the standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.

/// log2 of a finite u >= 1, to 1e-7: exponent plus the series of 2 atanh((m - 1) / (m + 1)), m in
/// [0.71, 1.41].
inline Floats measure_log2(Floats u) {
    const Ints bits = (Ints)u;
    const Ints exponent = (bits - 0x3f3504f3) >> 23;
    const Floats m = (Floats)(bits - (exponent << 23));
    const Floats s = (m - 1.0f) / (m + 1.0f);
    const Floats s2 = s * s;
    const Floats series = ((0.41219858f * s2 + 0.57707802f) * s2 + 0.96179669f) * s2 + 2.88539008f;
    return __builtin_convertvector(exponent, Floats) + s * series;
}

/// 2^y of y <= 0, to 1e-7; below 2^-126 it stays there.
inline Floats measure_exp2(Floats y) {
    y = y > -126.0f ? y : all_floats(-126.0f);
    const Floats shifted = y + 12582912.0f; // 1.5 * 2^23: the sum holds round(y) in its lowest bits
    const Floats f = y - (shifted - 12582912.0f);
    const Ints n = (Ints)shifted << 23;
    Floats series = 1.52527338e-5f * f + 1.54035304e-4f;
    series = series * f + 1.33335581e-3f;
    series = series * f + 9.61812911e-3f;
    series = series * f + 5.55041087e-2f;
    series = series * f + 2.40226507e-1f;
    series = series * f + 6.93147181e-1f;
    series = series * f + 1.0f;
    return (Floats)((Ints)series + n);
}

/// Profile of peak 1 at one offset from the star.
struct MeasurePoint {
    Floats dx, dy, q, steep, log, profile; // steep: (1 + k q)^(-beta - 1)
};

inline MeasurePoint measure_point(Floats dx, Floats dy, const MeasureMoffat& m) {
    MeasurePoint at = {dx, dy, {}, {}, {}, {}};
    at.q = dx * (m.a * dx + 2 * m.b * dy) + m.c * dy * dy;
    const Floats u = 1.0f + m.k * at.q;
    at.log = measure_log2(u);
    at.profile = measure_exp2(-m.beta * at.log);
    at.steep = at.profile / u;
    return at;
}

/// Point `node` of the NODES that make a pixel: its middle, or the two-point Gauss-Legendre rule along each
/// axis.
template <int NODES>
inline MeasurePoint measure_node(const MeasurePixels& pixels, const MeasureMoffat& m, ptrdiff_t i, int node) {
    const float sx = NODES == 1 ? 0.0f : node & 1 ? m.node : -m.node;
    const float sy = NODES == 1 ? 0.0f : node & 2 ? m.node : -m.node;
    return measure_point(load_aligned(pixels.x + i) - (m.x - sx), load_aligned(pixels.y + i) - (m.y - sy), m);
}

/// What the weights take from the model: linear and quadratic variance per unit of the profile.
struct MeasureVariance {
    float photons, mismatch;
};

inline MeasureVariance measure_variance(const MeasureMoffat& m) {
    return {m.peak > 0 ? m.peak * m.photons : 0, m.peak * m.peak * m.mismatch * m.mismatch};
}

inline Floats measure_weight(const MeasurePixels& pixels, const MeasureVariance& v, Floats profile, ptrdiff_t i) {
    return 1.0f / (load_aligned(pixels.variance + i) + profile * (v.photons + v.mismatch * profile));
}

template <int NODES>
double measure_shape_nodes(const MeasurePixels& pixels, const MeasureMoffat& m, const float* weight, float* derivatives,
                           float* residual, float* model_weight) {
    const ptrdiff_t n = pixels.n;
    const MeasureVariance variance = measure_variance(m);
    const float slope = m.beta * m.k * m.peak / NODES;
    const float eta_log = 0.69314718f * m.beta * m.beta * m.peak / NODES;
    const float eta_width = m.beta * m.dk * m.peak / NODES;
    Floats squares = {};
    for (ptrdiff_t i = 0; i < n; i += native_lanes) {
        Floats profile = {}, d[measure_shape] = {};
        for (int node = 0; node < NODES; ++node) {
            const MeasurePoint at = measure_node<NODES>(pixels, m, i, node);
            const Floats gx = at.steep * at.dx, gy = at.steep * at.dy;
            profile += at.profile;
            d[0] += gx;
            d[1] += gy;
            d[4] += gx * at.dx;
            d[5] += gx * at.dy;
            d[6] += gy * at.dy;
            d[7] += eta_log * at.profile * at.log - eta_width * at.steep * at.q;
        }
        profile *= 1.0f / NODES;
        const Floats r = load_aligned(pixels.value + i) - m.sky - m.peak * profile;
        store_aligned(derivatives + i, 2 * slope * (m.a * d[0] + m.b * d[1]));
        store_aligned(derivatives + n + i, 2 * slope * (m.b * d[0] + m.c * d[1]));
        store_aligned(derivatives + 2 * n + i, profile);
        store_aligned(derivatives + 3 * n + i, all_floats(1.0f));
        store_aligned(derivatives + 4 * n + i, -slope * d[4]);
        store_aligned(derivatives + 5 * n + i, -2 * slope * d[5]);
        store_aligned(derivatives + 6 * n + i, -slope * d[6]);
        store_aligned(derivatives + 7 * n + i, d[7]);
        store_aligned(residual + i, r);
        store_aligned(model_weight + i, measure_weight(pixels, variance, profile, i));
        squares += load_aligned(weight + i) * r * r;
    }
    return static_cast<double>(add_lanes(squares));
}

double measure_shape_row(const MeasurePixels& pixels, const MeasureMoffat& m, const float* weight, float* derivatives,
                         float* residual, float* model_weight) {
    const auto row = m.node > 0 ? measure_shape_nodes<4> : measure_shape_nodes<1>;
    return row(pixels, m, weight, derivatives, residual, model_weight);
}

/// Rows FIRST to LAST of the normal equations: few enough sums to stay in registers.
template <int FIRST, int LAST>
inline void measure_sums_part(ptrdiff_t n, const float* derivatives, const float* residual, const float* weight,
                              double* sums) {
    constexpr int P = measure_shape;
    Floats matrix[P][P] = {}, gradient[P] = {}, squares = {};
    for (ptrdiff_t i = 0; i < n; i += native_lanes) {
        const Floats w = load_aligned(weight + i), r = load_aligned(residual + i);
        Floats d[P];
        for (int p = FIRST; p < P; ++p)
            d[p] = load_aligned(derivatives + p * n + i);
        for (int p = FIRST; p < LAST; ++p) {
            const Floats wd = w * d[p];
            for (int q = p; q < P; ++q)
                matrix[p][q] += wd * d[q];
            gradient[p] += wd * r;
        }
        if (FIRST == 0)
            squares += w * r * r;
    }
    int k = FIRST * P - FIRST * (FIRST - 1) / 2;
    for (int p = FIRST; p < LAST; ++p)
        for (int q = p; q < P; ++q)
            sums[k++] = static_cast<double>(add_lanes(matrix[p][q]));
    for (int p = FIRST; p < LAST; ++p)
        sums[P * (P + 1) / 2 + p] = static_cast<double>(add_lanes(gradient[p]));
    if (FIRST == 0)
        sums[P * (P + 1) / 2 + P] = static_cast<double>(add_lanes(squares));
}

void measure_shape_sums(ptrdiff_t n, const float* derivatives, const float* residual, const float* weight,
                        double* sums) {
    measure_sums_part<0, 2>(n, derivatives, residual, weight, sums);
    measure_sums_part<2, 4>(n, derivatives, residual, weight, sums);
    measure_sums_part<4, 8>(n, derivatives, residual, weight, sums);
}

constexpr int measure_batch = 16; // vectors whose derivatives are kept, so that the sums of each pass stay in registers

/// Derivatives by x, y, peak, (sky: 1), width in some vectors of pixels, and the sums over all so far.
struct MeasureWidthSums {
    static constexpr int P = measure_width, sky = 3;

    Floats d[P][measure_batch], weight[measure_batch], residual[measure_batch];
    Floats matrix[P][P], gradient[P], squares;

    Floats derivative(int p, int v) const { return p == sky ? all_floats(1.0f) : d[p][v]; }

    /// Rows FIRST to LAST of the normal equations.
    template <int FIRST, int LAST> void add(int n) {
        Floats part[P][P], slope[P], total = squares;
        for (int p = FIRST; p < LAST; ++p) {
            slope[p] = gradient[p];
            for (int q = p; q < P; ++q)
                part[p][q] = matrix[p][q];
        }
        for (int v = 0; v < n; ++v) {
            const Floats w = weight[v], r = residual[v];
            for (int p = FIRST; p < LAST; ++p) {
                const Floats wd = w * derivative(p, v);
                for (int q = p; q < P; ++q)
                    part[p][q] += wd * derivative(q, v);
                slope[p] += wd * r;
            }
            if (FIRST == 0)
                total += w * r * r;
        }
        for (int p = FIRST; p < LAST; ++p) {
            gradient[p] = slope[p];
            for (int q = p; q < P; ++q)
                matrix[p][q] = part[p][q];
        }
        squares = total;
    }
};

template <int NODES> void measure_width_nodes(const MeasurePixels& pixels, const MeasureMoffat& m, double* sums) {
    constexpr int P = measure_width;
    const MeasureVariance variance = measure_variance(m);
    const float slope = 2 * m.beta * m.k * m.peak / NODES;
    MeasureWidthSums s;
    for (int p = 0; p < P; ++p) {
        s.gradient[p] = Floats{};
        for (int q = p; q < P; ++q)
            s.matrix[p][q] = Floats{};
    }
    s.squares = Floats{};
    for (ptrdiff_t start = 0; start < pixels.n; start += measure_batch * native_lanes) {
        const ptrdiff_t left = (pixels.n - start) / native_lanes;
        const int n = left < measure_batch ? static_cast<int>(left) : measure_batch;
        for (int v = 0; v < n; ++v) {
            const ptrdiff_t i = start + v * native_lanes;
            Floats profile = {}, gx = {}, gy = {}, wider = {};
            for (int node = 0; node < NODES; ++node) {
                const MeasurePoint at = measure_node<NODES>(pixels, m, i, node);
                profile += at.profile;
                gx += at.steep * at.dx;
                gy += at.steep * at.dy;
                wider += at.steep * at.q;
            }
            profile *= 1.0f / NODES;
            s.residual[v] = load_aligned(pixels.value + i) - m.sky - m.peak * profile;
            s.weight[v] = measure_weight(pixels, variance, profile, i);
            s.d[0][v] = slope * (m.a * gx + m.b * gy);
            s.d[1][v] = slope * (m.b * gx + m.c * gy);
            s.d[2][v] = profile;
            s.d[4][v] = slope * wider;
        }
        s.add<0, 2>(n);
        s.add<2, P>(n);
    }
    int k = 0;
    for (int p = 0; p < P; ++p)
        for (int q = p; q < P; ++q)
            sums[k++] = static_cast<double>(add_lanes(s.matrix[p][q]));
    for (int p = 0; p < P; ++p)
        sums[k++] = static_cast<double>(add_lanes(s.gradient[p]));
    sums[k] = static_cast<double>(add_lanes(s.squares));
}

void measure_width_sums(const MeasurePixels& pixels, const MeasureMoffat& m, double* sums) {
    (m.node > 0 ? measure_width_nodes<4> : measure_width_nodes<1>)(pixels, m, sums);
}

template <int NODES> void measure_subtract_nodes(const MeasurePixels& pixels, const MeasureMoffat& m, float* value) {
    for (ptrdiff_t i = 0; i < pixels.n; i += native_lanes) {
        Floats profile = {};
        for (int node = 0; node < NODES; ++node)
            profile += measure_node<NODES>(pixels, m, i, node).profile;
        store_aligned(value + i, load_aligned(value + i) - m.peak / NODES * profile);
    }
}

void measure_subtract(const MeasurePixels& pixels, const MeasureMoffat& m, float* value) {
    (m.node > 0 ? measure_subtract_nodes<4> : measure_subtract_nodes<1>)(pixels, m, value);
}

float measure_top(const MeasurePixels& pixels, float x, float y) {
    Floats highest = all_floats(-__builtin_inff());
    for (ptrdiff_t i = 0; i < pixels.n; i += native_lanes) {
        const Floats dx = load_aligned(pixels.x + i) - x, dy = load_aligned(pixels.y + i) - y,
                     value = load_aligned(pixels.value + i);
        const Ints counts =
            (dx * dx + dy * dy < 2.25f) & (load_aligned(pixels.variance + i) < measure_padding) & (value > highest);
        highest = counts ? value : highest;
    }
    float top = highest[0];
    for (int i = 1; i < native_lanes; ++i)
        top = highest[i] > top ? highest[i] : top;
    return top;
}

double measure_log_ratio(const MeasurePixels& pixels, const float* weight) {
    Floats sum = {};
    for (ptrdiff_t i = 0; i < pixels.n; i += native_lanes)
        sum -= measure_log2(1.0f / (load_aligned(weight + i) * load_aligned(pixels.variance + i)));
    return 0.6931471805599453 * static_cast<double>(add_lanes(sum));
}

constexpr ptrdiff_t window_lanes = native_lanes < 8 ? native_lanes : 8; // a row of a window is hardly longer
typedef float WindowFloats __attribute__((vector_size(4 * window_lanes)));
typedef int32_t WindowInts __attribute__((vector_size(4 * window_lanes)));

/// Pixels of one row of a window above the sky; lanes of `bad` are set where one is not finite or at the saturation
/// level.
inline void measure_window_lanes(const float* x, float sky, float saturation, float* value, WindowInts& bad) {
    WindowFloats v;
    __builtin_memcpy(&v, x, sizeof v);
    const WindowFloats size = (WindowFloats)((WindowInts)v & 0x7fffffff);
    bad |= ~((size <= 3.4028234e38f) & (v < saturation));
    v -= sky;
    __builtin_memcpy(value, &v, sizeof v);
}

bool measure_window(const float* middle, ptrdiff_t stride, const int* half, ptrdiff_t reach, float sky,
                    float saturation, float* value) {
    WindowInts bad = {};
    for (ptrdiff_t dy = -reach; dy <= reach; ++dy) {
        const ptrdiff_t h = half[dy + reach], n = 2 * h + 1;
        const float* x = middle + dy * stride - h;
        if (n >= window_lanes) {
            for (ptrdiff_t i = 0; i + window_lanes < n; i += window_lanes)
                measure_window_lanes(x + i, sky, saturation, value + i, bad);
            measure_window_lanes(x + n - window_lanes, sky, saturation, value + n - window_lanes, bad);
        } else {
            for (ptrdiff_t i = 0; i < n; ++i) {
                bad[0] |= (fabsf(x[i]) <= 3.4028234e38f) & (x[i] < saturation) ? 0 : -1;
                value[i] = x[i] - sky;
            }
        }
        value += n;
    }
    int any = 0;
    for (int i = 0; i < window_lanes; ++i)
        any |= bad[i];
    return !any;
}

constexpr MeasureRows measure_rows = {measure_window,   measure_shape_row, measure_shape_sums, measure_width_sums,
                                      measure_subtract, measure_top,       measure_log_ratio};
