// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of
// the standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.

// Written so that the compiler makes them one instruction each.
inline float lower(float a, float b) {
    return a < b ? a : b;
}
inline float upper(float a, float b) {
    return a > b ? a : b;
}
inline float median3(float a, float b, float c) {
    return upper(lower(a, b), lower(upper(a, b), c));
}

void median_of_nine(const float* __restrict__ x, ptrdiff_t n, float* __restrict__ out) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float a = median3(x[i], x[i + n], x[i + 2 * n]);
        const float b = median3(x[i + 3 * n], x[i + 4 * n], x[i + 5 * n]);
        const float c = median3(x[i + 6 * n], x[i + 7 * n], x[i + 8 * n]);
        out[i] = median3(a, b, c);
    }
}

void distance(const float* __restrict__ x, ptrdiff_t n, float centre, float* __restrict__ out) {
    for (ptrdiff_t i = 0; i < n; ++i)
        out[i] = fabsf(x[i] - centre);
}

inline float lane_sum(float* lane) {
    for (int half = cell_lanes / 2; half > 0; half /= 2)
        for (int j = 0; j < half; ++j)
            lane[j] += lane[j + half];
    return lane[0];
}

// Sums run in separate lanes, whose order is the same for every instruction set.
CellMoments moments(const float* __restrict__ x, ptrdiff_t n, float centre, float limit) {
    float count[cell_lanes] = {}, sum[cell_lanes] = {}, sum2[cell_lanes] = {};
    for (ptrdiff_t i = 0; i < n; i += cell_lanes)
        for (int j = 0; j < cell_lanes; ++j) {
            const float d = x[i + j] - centre;
            const float inside = fabsf(d) <= limit ? 1.0f : 0.0f;
            const float kept = fabsf(d) <= limit ? d : 0.0f;
            count[j] += inside;
            sum[j] += kept;
            sum2[j] += kept * kept;
        }
    return {lane_sum(count), lane_sum(sum), lane_sum(sum2)};
}

CellCore core(const float* __restrict__ x, ptrdiff_t n, float centre, float limit, float width) {
    float count[cell_lanes] = {}, sum[cell_lanes] = {};
    for (ptrdiff_t i = 0; i < n; i += cell_lanes)
        for (int j = 0; j < cell_lanes; ++j) {
            const float d = x[i + j] - centre;
            const float kept = fabsf(d) <= limit ? d : 0.0f;
            count[j] += fabsf(d) < width ? 1.0f : 0.0f;
            sum[j] += lower(upper(kept, -width), width);
        }
    return {lane_sum(count), lane_sum(sum)};
}

inline int count_missing(const float* __restrict__ x, ptrdiff_t n) {
    int missing = 0;
    for (ptrdiff_t i = 0; i < n; ++i)
        missing += fabsf(x[i]) <= 3.4028234e38f ? 0 : 1;
    return missing;
}

void deal(const float* x, const ptrdiff_t* edge, ptrdiff_t n, float* const* out, int* missing) {
    const bool gaps = count_missing(x + edge[0], edge[n] - edge[0]) > 0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float* __restrict__ from = x + edge[i];
        float* __restrict__ to = out[i];
        const ptrdiff_t width = edge[i + 1] - edge[i];
        for (ptrdiff_t k = 0; k < width; ++k)
            to[k] = from[k];
        if (gaps)
            missing[i] += count_missing(from, width);
    }
}

void blend(const float* const* rows, const float* weight, ptrdiff_t n, float* __restrict__ out) {
    const float *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
    const float wa = weight[0], wb = weight[1], wc = weight[2], wd = weight[3];
    for (ptrdiff_t i = 0; i < n; ++i)
        out[i] = wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
}

void subtract(const float* __restrict__ x, const float* __restrict__ level, ptrdiff_t n, float* __restrict__ out) {
    for (ptrdiff_t i = 0; i < n; ++i)
        out[i] = x[i] - level[i];
}

constexpr BackgroundRows background_rows = {median_of_nine, distance, moments, core, deal, blend, subtract};
