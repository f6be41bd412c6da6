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

// Inlined so that whole blocks have a constant length: vectors alone, without tests and tails.
template <int R>
__attribute__((always_inline)) inline void filter_columns(const float* const (&row)[2 * R + filter_rows],
                                                          const float (&t)[R + 1], float start, ptrdiff_t from,
                                                          ptrdiff_t n, float* __restrict__ out, ptrdiff_t stride) {
    for (ptrdiff_t i = 0; i < n; ++i) {
        float x[2 * R + filter_rows];
#pragma GCC unroll 64
        for (int j = 0; j < 2 * R + filter_rows; ++j)
            x[j] = row[j][from + i];
#pragma GCC unroll 16
        for (int k = 0; k < filter_rows; ++k) {
            float sum = start + t[0] * x[R + k];
#pragma GCC unroll 16
            for (int j = 1; j <= R; ++j)
                sum += t[j] * (x[R + k - j] + x[R + k + j]);
            out[k * stride + from + i] = sum;
        }
    }
}

template <int R>
void filter_y(const float* const* in, const float* tap, float start, ptrdiff_t n, float* __restrict__ out,
              ptrdiff_t stride, const float* const* next) {
    float t[R + 1];
    const float* row[2 * R + filter_rows];
    for (int j = 0; j <= R; ++j)
        t[j] = tap[j];
    for (int j = 0; j < 2 * R + filter_rows; ++j)
        row[j] = in[j];
    for (ptrdiff_t from = 0; from < n; from += threshold_block) {
        const ptrdiff_t to = from + threshold_block < n ? from + threshold_block : n;
        for (int k = 0; k < filter_rows; ++k)
            for (ptrdiff_t i = from; i < to; i += 16) // a line of the cache
                __builtin_prefetch(next[k] + i);
        if (to - from == threshold_block)
            filter_columns<R>(row, t, start, from, threshold_block, out, stride);
        else
            filter_columns<R>(row, t, start, from, to - from, out, stride);
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

/// Appends the places `from` + i of the bits i that are set.
inline int list_places(uint32_t bits, ptrdiff_t from, int count, uint8_t* places) {
    for (; bits; bits &= bits - 1)
        places[count++] = static_cast<uint8_t>(from + __builtin_ctz(bits));
    return count;
}

int peaks(const float* above, const float* here, const float* below, ptrdiff_t n, float threshold, uint8_t* places) {
    int count = 0;
    ptrdiff_t i = 0;
    for (; i + native_lanes <= n; i += native_lanes) {
        const Floats v = load_floats(here + i);
        const Ints bright = v > threshold;
        if (!set_lanes(bright))
            continue;
        const Ints after = (v >= load_floats(here + i - 1)) & (v >= load_floats(above + i - 1)) &
                           (v >= load_floats(above + i)) & (v >= load_floats(above + i + 1));
        const Ints before = (v > load_floats(here + i + 1)) & (v > load_floats(below + i - 1)) &
                            (v > load_floats(below + i)) & (v > load_floats(below + i + 1));
        count = list_places(set_lanes(bright & after & before), i, count, places);
    }
    for (; i < n; ++i) {
        const float v = here[i];
        const bool after = (v >= here[i - 1]) & (v >= above[i - 1]) & (v >= above[i]) & (v >= above[i + 1]);
        const bool before = (v > here[i + 1]) & (v > below[i - 1]) & (v > below[i]) & (v > below[i + 1]);
        if ((v > threshold) & after & before)
            places[count++] = static_cast<uint8_t>(i);
    }
    return count;
}

int mark(const float* x, ptrdiff_t n, float threshold, uint8_t* places) {
    int count = 0;
    ptrdiff_t i = 0;
    for (; i + native_lanes <= n; i += native_lanes)
        count = list_places(set_lanes(load_floats(x + i) > threshold), i, count, places);
    for (; i < n; ++i)
        if (x[i] > threshold)
            places[count++] = static_cast<uint8_t>(i);
    return count;
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

/// Some pixels and what surrounds them, in units of the sky's noise.
struct SharpTest {
    static constexpr float companion = 0.4f; // part of a pixel's light that makes its neighbour one of a pair
    // Smallest I(0,0) I(1,1) / (I(1,0) I(0,1)): that of an ellipticity of 0.4 at 45 degrees and a FWHM of 1.8.
    static constexpr float corner_part = 0.4f;

    Floats shot, limit2;

    Floats variance(Floats z) const { return 1.0f + shot * above_zero(z); }

    /// Whether `here`, a mean of pixels, exceeds `near` / ratio, another. `part`: a mean's variance over that of a
    /// pixel. False where one is NaN.
    Ints exceeds(Floats here, float part, Floats near, Floats near_part, float ratio) const {
        const float inverse = 1.0f / ratio;
        const Floats excess = (1.0f - psf_mismatch) * here - near * inverse;
        const Floats spread = part * variance(here) + inverse * inverse * near_part * variance(near);
        return (excess > 0.0f) & (excess * excess > limit2 * spread);
    }

    /// Of one hit or one star; a star's pixel next to a much brighter hit is not judged together with it.
    static Ints alike(Floats here, Floats mate) { return (mate > companion * here) & (here > companion * mate); }

    /// Whether the fourth pixel of a square is too dark for the other three.
    Ints corner(Floats here, Floats beside, Floats below, Floats across) const {
        const Floats part = corner_part / here;
        const Floats b = part * beside, c = part * below;
        const Floats excess = b * below - across;
        const Floats spread = variance(across) + c * c * variance(beside) + b * b * variance(below) +
                              b * b * c * c * (1.0f / (corner_part * corner_part)) * variance(here);
        return alike(here, beside) & alike(here, below) & (excess > 0.0f) & (excess * excess > limit2 * spread);
    }

    /// The tests along an axis and across it; `near` and `far` on either side of `here`, `beside` those next to it on
    /// the other axis, `first` and `second` those next to `near`.
    Ints axis(Floats here, const Floats (&near)[2], const Floats (&far)[2], const Floats (&beside)[2],
              const Floats (&first)[2], const Floats (&second)[2], float next) const {
        Ints hit = exceeds(here, 1, 0.5f * (near[0] + near[1]), all_floats(0.5f), next);
        for (int side = 0; side < 2; ++side) {
            const Floats pair = 0.5f * (here + near[side]);
            const Floats along = 0.5f * (near[1 - side] + far[side]);
            const Floats across = 0.25f * (beside[0] + beside[1] + first[side] + second[side]);
            hit |= alike(here, near[side]) & (exceeds(pair, 0.5f, along, all_floats(0.5f), next * next) |
                                              exceeds(pair, 0.5f, across, all_floats(0.25f), next));
        }
        return hit;
    }
};

void sharp(const SharpPixels& pixels, int n, float next, uint8_t* __restrict__ hit) {
    for (int start = 0; start < n; start += native_lanes) {
        const Floats limit = load_aligned(pixels.limit + start), sky = load_aligned(pixels.sky + start),
                     scale = 1.0f / load_aligned(pixels.noise + start);
        const SharpTest test = {load_aligned(pixels.shot + start), limit * limit};
        Floats z[SharpPixels::around];
        for (int k = 0; k < SharpPixels::around; ++k)
            z[k] = (load_aligned(pixels.pixel[k] + start) - sky) * scale;
        const Floats here = z[0], x[2] = {z[1], z[2]}, y[2] = {z[3], z[4]}, xx[2] = {z[5], z[6]}, yy[2] = {z[7], z[8]},
                     below[2] = {z[9], z[10]}, above[2] = {z[11], z[12]}, left[2] = {z[9], z[11]},
                     right[2] = {z[10], z[12]};
        Ints found = test.axis(here, x, xx, y, below, above, next) | test.axis(here, y, yy, x, left, right, next);
        for (int v = 0; v < 2; ++v)
            for (int u = 0; u < 2; ++u)
                found |= test.corner(here, x[u], y[v], z[9 + 2 * v + u]);
        Floats sum = {}, count = {};
        for (int k = 1; k <= 4; ++k) {
            const Ints there = absolute(z[k]) <= largest_float;
            sum += there ? z[k] : Floats{};
            count += there ? all_floats(1.0f) : Floats{};
        }
        const Floats part = 1.0f / (count > 0.0f ? count : all_floats(1.0f));
        found |= (count > 2.0f) & test.exceeds(here, 1, sum * part, part, next);
        found &= absolute(here) <= largest_float;
        for (int i = 0; i < native_lanes && start + i < n; ++i)
            hit[start + i] = found[i] ? 1 : 0;
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
    sharp,
};
