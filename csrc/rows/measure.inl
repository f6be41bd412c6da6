// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of
// the standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.
//
// The sums below are float reductions, which a compiler may not reorder by itself; the vectors are therefore
// written out with the vector extension of GCC and Clang, as wide as the instruction set's registers.

#if defined(__AVX512F__)
constexpr int measure_lanes = 16;
#elif defined(__AVX__)
constexpr int measure_lanes = 8;
#else
constexpr int measure_lanes = 4;
#endif

typedef float MeasureFloats __attribute__((vector_size(4 * measure_lanes)));
typedef int32_t MeasureInts __attribute__((vector_size(4 * measure_lanes)));

inline MeasureFloats measure_load(const float* p) {
    MeasureFloats v;
    __builtin_memcpy(&v, __builtin_assume_aligned(p, 4 * measure_lanes), sizeof v);
    return v;
}

inline void measure_store(float* p, MeasureFloats v) {
    __builtin_memcpy(__builtin_assume_aligned(p, 4 * measure_lanes), &v, sizeof v);
}

inline MeasureFloats measure_fill(float value) {
    return MeasureFloats{} + value;
}

inline double measure_total(MeasureFloats v) {
    double total = 0;
    for (int i = 0; i < measure_lanes; ++i)
        total += static_cast<double>(v[i]);
    return total;
}

/// log2 of a finite u >= 1, to 1e-7: exponent plus the series of 2 atanh((m - 1) / (m + 1)), m in
/// [0.71, 1.41].
inline MeasureFloats measure_log2(MeasureFloats u) {
    const MeasureInts bits = (MeasureInts)u;
    const MeasureInts exponent = (bits - 0x3f3504f3) >> 23;
    const MeasureFloats m = (MeasureFloats)(bits - (exponent << 23));
    const MeasureFloats s = (m - 1.0f) / (m + 1.0f);
    const MeasureFloats s2 = s * s;
    const MeasureFloats series = ((0.41219858f * s2 + 0.57707802f) * s2 + 0.96179669f) * s2 + 2.88539008f;
    return __builtin_convertvector(exponent, MeasureFloats) + s * series;
}

/// 2^y of y <= 0, to 1e-7; below 2^-126 it stays there.
inline MeasureFloats measure_exp2(MeasureFloats y) {
    y = y > -126.0f ? y : measure_fill(-126.0f);
    const MeasureFloats shifted = y + 12582912.0f; // 1.5 * 2^23: the sum holds round(y) in its lowest bits
    const MeasureFloats f = y - (shifted - 12582912.0f);
    const MeasureInts n = (MeasureInts)shifted << 23;
    MeasureFloats series = 1.52527338e-5f * f + 1.54035304e-4f;
    series = series * f + 1.33335581e-3f;
    series = series * f + 9.61812911e-3f;
    series = series * f + 5.55041087e-2f;
    series = series * f + 2.40226507e-1f;
    series = series * f + 6.93147181e-1f;
    series = series * f + 1.0f;
    return (MeasureFloats)((MeasureInts)series + n);
}

/// Profile of peak 1 at one offset from the star.
struct MeasurePoint {
    MeasureFloats dx, dy, q, steep, log, profile; // steep: (1 + k q)^(-beta - 1)
};

inline MeasurePoint measure_point(MeasureFloats dx, MeasureFloats dy, const MeasureMoffat& m) {
    MeasurePoint at = {dx, dy, {}, {}, {}, {}};
    at.q = dx * (m.a * dx + 2 * m.b * dy) + m.c * dy * dy;
    const MeasureFloats u = 1.0f + m.k * at.q;
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
    return measure_point(measure_load(pixels.x + i) - (m.x - sx), measure_load(pixels.y + i) - (m.y - sy), m);
}

/// What the weights take from the model: linear and quadratic variance per unit of the profile.
struct MeasureVariance {
    float photons, mismatch;
};

inline MeasureVariance measure_variance(const MeasureMoffat& m) {
    return {m.peak > 0 ? m.peak * m.photons : 0, m.peak * m.peak * m.mismatch * m.mismatch};
}

inline MeasureFloats measure_weight(const MeasurePixels& pixels, const MeasureVariance& v, MeasureFloats profile,
                                    ptrdiff_t i) {
    return 1.0f / (measure_load(pixels.variance + i) + profile * (v.photons + v.mismatch * profile));
}

template <int NODES>
double measure_shape_nodes(const MeasurePixels& pixels, const MeasureMoffat& m, const float* weight, float* derivatives,
                           float* residual, float* model_weight) {
    const ptrdiff_t n = pixels.n;
    const MeasureVariance variance = measure_variance(m);
    const float slope = m.beta * m.k * m.peak / NODES;
    const float eta_log = 0.69314718f * m.beta * m.beta * m.peak / NODES;
    const float eta_width = m.beta * m.dk * m.peak / NODES;
    MeasureFloats squares = {};
    for (ptrdiff_t i = 0; i < n; i += measure_lanes) {
        MeasureFloats profile = {}, d[measure_shape] = {};
        for (int node = 0; node < NODES; ++node) {
            const MeasurePoint at = measure_node<NODES>(pixels, m, i, node);
            const MeasureFloats gx = at.steep * at.dx, gy = at.steep * at.dy;
            profile += at.profile;
            d[0] += gx;
            d[1] += gy;
            d[4] += gx * at.dx;
            d[5] += gx * at.dy;
            d[6] += gy * at.dy;
            d[7] += eta_log * at.profile * at.log - eta_width * at.steep * at.q;
        }
        profile *= 1.0f / NODES;
        const MeasureFloats r = measure_load(pixels.value + i) - m.sky - m.peak * profile;
        measure_store(derivatives + i, 2 * slope * (m.a * d[0] + m.b * d[1]));
        measure_store(derivatives + n + i, 2 * slope * (m.b * d[0] + m.c * d[1]));
        measure_store(derivatives + 2 * n + i, profile);
        measure_store(derivatives + 3 * n + i, measure_fill(1.0f));
        measure_store(derivatives + 4 * n + i, -slope * d[4]);
        measure_store(derivatives + 5 * n + i, -2 * slope * d[5]);
        measure_store(derivatives + 6 * n + i, -slope * d[6]);
        measure_store(derivatives + 7 * n + i, d[7]);
        measure_store(residual + i, r);
        measure_store(model_weight + i, measure_weight(pixels, variance, profile, i));
        squares += measure_load(weight + i) * r * r;
    }
    return measure_total(squares);
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
    MeasureFloats matrix[P][P] = {}, gradient[P] = {}, squares = {};
    for (ptrdiff_t i = 0; i < n; i += measure_lanes) {
        const MeasureFloats w = measure_load(weight + i), r = measure_load(residual + i);
        MeasureFloats d[P];
        for (int p = FIRST; p < P; ++p)
            d[p] = measure_load(derivatives + p * n + i);
        for (int p = FIRST; p < LAST; ++p) {
            const MeasureFloats wd = w * d[p];
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
            sums[k++] = measure_total(matrix[p][q]);
    for (int p = FIRST; p < LAST; ++p)
        sums[P * (P + 1) / 2 + p] = measure_total(gradient[p]);
    if (FIRST == 0)
        sums[P * (P + 1) / 2 + P] = measure_total(squares);
}

void measure_shape_sums(ptrdiff_t n, const float* derivatives, const float* residual, const float* weight,
                        double* sums) {
    measure_sums_part<0, 2>(n, derivatives, residual, weight, sums);
    measure_sums_part<2, 4>(n, derivatives, residual, weight, sums);
    measure_sums_part<4, 8>(n, derivatives, residual, weight, sums);
}

template <int NODES> void measure_width_nodes(const MeasurePixels& pixels, const MeasureMoffat& m, double* sums) {
    constexpr int P = measure_width;
    const MeasureVariance variance = measure_variance(m);
    const float slope = 2 * m.beta * m.k * m.peak / NODES;
    MeasureFloats matrix[P][P] = {}, gradient[P] = {}, squares = {};
    for (ptrdiff_t i = 0; i < pixels.n; i += measure_lanes) {
        MeasureFloats profile = {}, gx = {}, gy = {}, wider = {};
        for (int node = 0; node < NODES; ++node) {
            const MeasurePoint at = measure_node<NODES>(pixels, m, i, node);
            profile += at.profile;
            gx += at.steep * at.dx;
            gy += at.steep * at.dy;
            wider += at.steep * at.q;
        }
        profile *= 1.0f / NODES;
        const MeasureFloats r = measure_load(pixels.value + i) - m.sky - m.peak * profile;
        const MeasureFloats w = measure_weight(pixels, variance, profile, i);
        const MeasureFloats d[P] = {slope * (m.a * gx + m.b * gy), slope * (m.b * gx + m.c * gy), profile,
                                    measure_fill(1.0f), slope * wider};
        for (int p = 0; p < P; ++p) {
            const MeasureFloats wd = w * d[p];
            for (int q = p; q < P; ++q)
                matrix[p][q] += wd * d[q];
            gradient[p] += wd * r;
        }
        squares += w * r * r;
    }
    int k = 0;
    for (int p = 0; p < P; ++p)
        for (int q = p; q < P; ++q)
            sums[k++] = measure_total(matrix[p][q]);
    for (int p = 0; p < P; ++p)
        sums[k++] = measure_total(gradient[p]);
    sums[k] = measure_total(squares);
}

void measure_width_sums(const MeasurePixels& pixels, const MeasureMoffat& m, double* sums) {
    (m.node > 0 ? measure_width_nodes<4> : measure_width_nodes<1>)(pixels, m, sums);
}

template <int NODES> void measure_subtract_nodes(const MeasurePixels& pixels, const MeasureMoffat& m, float* value) {
    for (ptrdiff_t i = 0; i < pixels.n; i += measure_lanes) {
        MeasureFloats profile = {};
        for (int node = 0; node < NODES; ++node)
            profile += measure_node<NODES>(pixels, m, i, node).profile;
        measure_store(value + i, measure_load(value + i) - m.peak / NODES * profile);
    }
}

void measure_subtract(const MeasurePixels& pixels, const MeasureMoffat& m, float* value) {
    (m.node > 0 ? measure_subtract_nodes<4> : measure_subtract_nodes<1>)(pixels, m, value);
}

bool measure_window(const float* middle, ptrdiff_t stride, const int* half, ptrdiff_t reach, float sky,
                    float saturation, float* __restrict__ value) {
    int bad = 0;
    for (ptrdiff_t dy = -reach; dy <= reach; ++dy) {
        const ptrdiff_t h = half[dy + reach], n = 2 * h + 1;
        const float* __restrict__ x = middle + dy * stride - h;
        for (ptrdiff_t i = 0; i < n; ++i) {
            bad |= (fabsf(x[i]) <= 3.4028234e38f) & (x[i] < saturation) ? 0 : 1;
            value[i] = x[i] - sky;
        }
        value += n;
    }
    return !bad;
}

constexpr MeasureRows measure_rows = {measure_window, measure_shape_row, measure_shape_sums, measure_width_sums,
                                      measure_subtract};
