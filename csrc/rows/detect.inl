// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of
// the standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.

constexpr float largest_float = 3.4028234e38f;

int scan_block(const float* __restrict__ x, ptrdiff_t n, float bound, int& missing) {
    int above = 0, gone = 0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        above += x[i] > bound ? 1 : 0;
        gone += fabsf(x[i]) <= largest_float ? 0 : 1;
    }
    missing += gone;
    return above;
}

int scan(const float* __restrict__ x, ptrdiff_t n, const float* bound, uint8_t* __restrict__ above) {
    int missing = 0;
    ptrdiff_t start = 0;
    for (; start + threshold_block <= n; start += threshold_block)
        *above++ = static_cast<uint8_t>(scan_block(x + start, threshold_block, *bound++, missing));
    if (start < n)
        *above = static_cast<uint8_t>(scan_block(x + start, n - start, *bound, missing));
    return missing;
}

void fill(const float* __restrict__ x, ptrdiff_t n, float* __restrict__ out, float* __restrict__ present) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        const bool there = fabsf(x[i]) <= largest_float;
        out[i] = there ? x[i] : out[i];
        present[i] = there ? 1.0f : 0.0f;
    }
}

// The radius is a constant of the compiler, so that the taps stay in registers.
template <int R>
inline int filter_block(const float* __restrict__ in, const float* t, ptrdiff_t n, float bound,
                        float* __restrict__ out) {
    int above = 0;
    for (ptrdiff_t i = 0; i < n; ++i) {
        float sum = t[0] * in[i];
#pragma GCC unroll 16
        for (int j = 1; j <= R; ++j)
            sum += t[j] * (in[i - j] + in[i + j]);
        out[i] = sum;
        above += sum > bound ? 1 : 0;
    }
    return above;
}

template <int R>
void filter_x(const float* __restrict__ in, const float* tap, ptrdiff_t n, const float* bound, float* __restrict__ out,
              uint8_t* __restrict__ above) {
    float t[R + 1];
    for (int j = 0; j <= R; ++j)
        t[j] = tap[j];
    ptrdiff_t start = 0;
    for (; start + threshold_block <= n; start += threshold_block)
        *above++ = static_cast<uint8_t>(filter_block<R>(in + start, t, threshold_block, *bound++, out + start));
    if (start < n)
        *above = static_cast<uint8_t>(filter_block<R>(in + start, t, n - start, *bound, out + start));
}

template <int R>
void filter_y(const float* const* in, const float* tap, float start, ptrdiff_t n, float* __restrict__ out,
              ptrdiff_t stride) {
    float t[R + 1];
    const float* row[2 * R + filter_rows];
    for (int j = 0; j <= R; ++j)
        t[j] = tap[j];
    for (int j = 0; j < 2 * R + filter_rows; ++j)
        row[j] = in[j];
    for (ptrdiff_t i = 0; i < n; ++i) {
        float x[2 * R + filter_rows];
#pragma GCC unroll 64
        for (int j = 0; j < 2 * R + filter_rows; ++j)
            x[j] = row[j][i];
#pragma GCC unroll 16
        for (int k = 0; k < filter_rows; ++k) {
            float sum = start + t[0] * x[R + k];
#pragma GCC unroll 16
            for (int j = 1; j <= R; ++j)
                sum += t[j] * (x[R + k - j] + x[R + k + j]);
            out[k * stride + i] = sum;
        }
    }
}

void normalise(const float* __restrict__ weight, const float* __restrict__ level, float pedestal, float sum,
               float least, ptrdiff_t n, const float* bound, float* __restrict__ out, uint8_t* __restrict__ above) {
    for (ptrdiff_t start = 0; start < n; start += threshold_block) {
        const ptrdiff_t end = start + threshold_block < n ? start + threshold_block : n;
        const float limit = *bound++;
        int count = 0;
        for (ptrdiff_t i = start; i < end; ++i) {
            const float zero = sum * (level[i] - pedestal);
            const float whole = weight[i] < 0.9999f ? weight[i] : 1.0f;
            const float value = whole < 1.0f ? zero + (out[i] - zero) / sqrtf(whole) : out[i];
            out[i] = weight[i] < least ? -__builtin_inff() : value;
            count += out[i] > limit ? 1 : 0;
        }
        *above++ = static_cast<uint8_t>(count);
    }
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

void mark(const float* __restrict__ x, ptrdiff_t n, float threshold, uint8_t* __restrict__ marked) {
    for (ptrdiff_t i = 0; i < n; ++i)
        marked[i] = x[i] > threshold ? 1 : 0;
}

void lit(const float* __restrict__ x, ptrdiff_t stride, ptrdiff_t columns, ptrdiff_t rows, float threshold,
         uint32_t* __restrict__ bits) {
    uint32_t bit[32];
    for (int i = 0; i < 32; ++i)
        bit[i] = 1u << i;
    for (ptrdiff_t j = 0; j < rows; ++j, x += stride) {
        uint32_t found = 0;
        for (ptrdiff_t i = 0; i < columns; ++i)
            found |= x[i] > threshold ? bit[i] : 0u;
        bits[j] = found;
    }
}

constexpr DetectRows detect_rows = {
    scan,
    fill,
    {filter_x<0>, filter_x<1>, filter_x<2>, filter_x<3>, filter_x<4>, filter_x<5>, filter_x<6>, filter_x<7>,
     filter_x<8>, filter_x<9>, filter_x<10>, filter_x<11>, filter_x<12>, filter_x<13>, filter_x<14>, filter_x<15>,
     filter_x<16>},
    {filter_y<0>, filter_y<1>, filter_y<2>, filter_y<3>, filter_y<4>, filter_y<5>, filter_y<6>, filter_y<7>,
     filter_y<8>, filter_y<9>, filter_y<10>, filter_y<11>, filter_y<12>, filter_y<13>, filter_y<14>, filter_y<15>,
     filter_y<16>},
    normalise,
    peaks,
    mark,
    lit,
};
