// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of
// the standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.

int whiten(const float* __restrict__ x, const float* const* level, const float* const* scale,
           const float* weight, ptrdiff_t n, float* __restrict__ out) {
    const float *a = level[0], *b = level[1], *c = level[2], *d = level[3], *p = scale[1], *q = scale[2];
    const float wa = weight[0], wb = weight[1], wc = weight[2], wd = weight[3], wp = weight[4],
                wq = weight[5];
    int missing = 0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float sky = wa * a[i] + wb * b[i] + wc * c[i] + wd * d[i];
        const bool there = fabsf(x[i]) <= 3.4028234e38f;
        const float z = (x[i] - sky) * (wp * p[i] + wq * q[i]);
        out[i] = there ? z : 0.0f;
        missing += there ? 0 : 1;
    }
    return missing;
}

void present(const float* __restrict__ x, ptrdiff_t n, float* __restrict__ out) {
    for (ptrdiff_t i = 0; i < n; ++i)
        out[i] = fabsf(x[i]) <= 3.4028234e38f ? 1.0f : 0.0f;
}

// The radius is a constant of the compiler, so that the taps stay in registers.
template <int R>
void filter_x(const float* __restrict__ in, const float* tap, ptrdiff_t n, float* __restrict__ out) {
    float t[R + 1];
    for (int j = 0; j <= R; ++j)
        t[j] = tap[j];
    for (ptrdiff_t i = 0; i < n; ++i) {
        float sum = t[0] * in[i];
#pragma GCC unroll 16
        for (int j = 1; j <= R; ++j)
            sum += t[j] * (in[i - j] + in[i + j]);
        out[i] = sum;
    }
}

template <int R>
void filter_y(const float* const* in, const float* tap, ptrdiff_t n, float* __restrict__ out) {
    float t[R + 1];
    const float* row[2 * R + 1];
    for (int j = 0; j <= R; ++j)
        t[j] = tap[j];
    for (int j = 0; j <= 2 * R; ++j)
        row[j] = in[j];
    for (ptrdiff_t i = 0; i < n; ++i) {
        float sum = t[0] * row[R][i];
#pragma GCC unroll 16
        for (int j = 1; j <= R; ++j)
            sum += t[j] * (row[R - j][i] + row[R + j][i]);
        out[i] = sum;
    }
}

void count_above(const float* __restrict__ x, ptrdiff_t n, float threshold, uint8_t* __restrict__ count) {
    ptrdiff_t start = 0;
    for (; start + threshold_block <= n; start += threshold_block) {
        int above = 0;
        for (ptrdiff_t i = 0; i < threshold_block; ++i)
            above += x[start + i] > threshold ? 1 : 0;
        *count++ = static_cast<uint8_t>(above);
    }
    if (start == n)
        return;
    int above = 0;
    for (; start < n; ++start)
        above += x[start] > threshold ? 1 : 0;
    *count = static_cast<uint8_t>(above);
}

void peaks(const float* above, const float* here, const float* below, ptrdiff_t n, float threshold,
           uint8_t* __restrict__ peak) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        const float v = here[i];
        const int after = (v >= here[i - 1]) & (v >= above[i - 1]) & (v >= above[i]) & (v >= above[i + 1]);
        const int before = (v > here[i + 1]) & (v > below[i - 1]) & (v > below[i]) & (v > below[i + 1]);
        peak[i] = static_cast<uint8_t>((v > threshold) & after & before);
    }
}

constexpr DetectRows detect_rows = {
    whiten,
    present,
    {filter_x<0>, filter_x<1>, filter_x<2>, filter_x<3>, filter_x<4>, filter_x<5>, filter_x<6>, filter_x<7>,
     filter_x<8>, filter_x<9>, filter_x<10>, filter_x<11>, filter_x<12>, filter_x<13>, filter_x<14>,
     filter_x<15>, filter_x<16>},
    {filter_y<0>, filter_y<1>, filter_y<2>, filter_y<3>, filter_y<4>, filter_y<5>, filter_y<6>, filter_y<7>,
     filter_y<8>, filter_y<9>, filter_y<10>, filter_y<11>, filter_y<12>, filter_y<13>, filter_y<14>,
     filter_y<15>, filter_y<16>},
    count_above,
    peaks,
};
