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

constexpr int cell_vectors = cell_lanes / native_lanes;

/// Sums run in `cell_lanes` lanes, whose order is the same for every instruction set.
inline float cell_total(Floats (&sum)[cell_vectors]) {
    for (int half = cell_vectors / 2; half > 0; half /= 2)
        for (int j = 0; j < half; ++j)
            sum[j] += sum[j + half];
    return add_lanes(sum[0]);
}

inline float cell_count(Ints count) {
    int total = 0;
    for (int i = 0; i < native_lanes; ++i)
        total -= count[i]; // a true lane is -1
    return static_cast<float>(total);
}

CellMoments moments(const float* __restrict__ x, ptrdiff_t n, float centre, float limit) {
    Ints count = {}; // one for all, so that the others stay in registers
    Floats sum[cell_vectors] = {}, sum2[cell_vectors] = {};
    for (ptrdiff_t i = 0; i < n; i += cell_lanes)
        for (int j = 0; j < cell_vectors; ++j) {
            const Floats d = load_floats(x + i + j * native_lanes) - centre;
            const Ints inside = absolute(d) <= limit;
            const Floats kept = (Floats)((Ints)d & inside);
            count += inside;
            sum[j] += kept;
            sum2[j] += kept * kept;
        }
    return {cell_count(count), cell_total(sum), cell_total(sum2)};
}

CellCore core(const float* __restrict__ x, ptrdiff_t n, float centre, float limit, float width) {
    Ints count = {};
    Floats sum[cell_vectors] = {};
    const Floats low = all_floats(-width), high = all_floats(width);
    for (ptrdiff_t i = 0; i < n; i += cell_lanes)
        for (int j = 0; j < cell_vectors; ++j) {
            const Floats d = load_floats(x + i + j * native_lanes) - centre;
            const Floats kept = (Floats)((Ints)d & (absolute(d) <= limit)), raised = kept > low ? kept : low;
            count += absolute(d) < width;
            sum[j] += raised < high ? raised : high;
        }
    return {cell_count(count), cell_total(sum)};
}

inline int count_missing(const float* __restrict__ x, ptrdiff_t n) {
    int missing = 0;
    for (ptrdiff_t i = 0; i < n; ++i)
        missing += fabsf(x[i]) <= 3.4028234e38f ? 0 : 1;
    return missing;
}

void deal(const float* x, const ptrdiff_t* edge, ptrdiff_t n, ptrdiff_t ahead, float* const* out, int* missing) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float* from = x + edge[i];
        float* to = out[i];
        const ptrdiff_t width = edge[i + 1] - edge[i];
        Ints gaps = {};
        ptrdiff_t k = 0;
        for (; k + cell_lanes <= width; k += cell_lanes) {
            __builtin_prefetch(from + k + ahead);
            __builtin_prefetch(from + k + ahead + 16); // a line of the cache
            for (int j = 0; j < cell_lanes; j += native_lanes) {
                const Floats v = load_floats(from + k + j);
                gaps |= ~(absolute(v) <= 3.4028234e38f);
                store_floats(to + k + j, v);
            }
        }
        bool any = set_lanes(gaps) != 0;
        for (; k < width; ++k) {
            any |= !(fabsf(from[k]) <= 3.4028234e38f);
            to[k] = from[k];
        }
        if (any)
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
