// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of
// the standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.
//
// Vectors are GCC's vector types: plain arithmetic that every instruction set lowers to its own registers.
// The order in which a pixel's taps are summed is the same in masked and in unmasked code, so that a missing
// pixel changes the bits of those outputs alone whose kernel holds it.

namespace resampling {

#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif

typedef float F __attribute__((vector_size(4 * lanes)));
typedef std::int32_t I __attribute__((vector_size(4 * lanes)));
typedef float LooseF __attribute__((vector_size(4 * lanes), aligned(4), may_alias));
typedef unsigned char Bytes __attribute__((vector_size(lanes), aligned(1), may_alias));
#define RESAMPLE_INLINE inline __attribute__((always_inline))

RESAMPLE_INLINE F load(const float* p) {
    return *reinterpret_cast<const LooseF*>(p);
}
RESAMPLE_INLINE void store(float* p, F v) {
    *reinterpret_cast<LooseF*>(p) = v;
}
RESAMPLE_INLINE F all(float x) {
    return F{} + x;
}
RESAMPLE_INLINE F fabs(F x) {
    return reinterpret_cast<F>(reinterpret_cast<I>(x) & 0x7fffffff);
}

RESAMPLE_INLINE I floor(F x) {
    const I whole = __builtin_convertvector(x, I);
    return whole + (__builtin_convertvector(whole, F) > x);
}

RESAMPLE_INLINE I not_finite(F x) {
    return (x - x) != 0.0f;
}

/// Whether any lane of a comparison holds.
RESAMPLE_INLINE bool any(I condition) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    return _mm256_movemask_ps(reinterpret_cast<__m256>(condition)) != 0;
#else
    const Bytes bytes = __builtin_convertvector(condition, Bytes);
    std::uint32_t words[lanes / 4];
    memcpy(words, &bytes, sizeof words);
    std::uint32_t sum = 0;
    for (int i = 0; i < lanes / 4; ++i)
        sum |= words[i];
    return sum != 0;
#endif
}

/// Stores whole numbers as bytes; larger ones than 255 become 255.
RESAMPLE_INLINE void store_bytes(unsigned char* p, I x) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    // Plain conversion takes them out one by one.
    const __m256i v = reinterpret_cast<__m256i>(x);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
#else
    x = x < 255 ? x : I{} + 255;
    *reinterpret_cast<Bytes*>(p) = __builtin_convertvector(x, Bytes);
#endif
}

/// Lane numbers of part `part` of a block, counted from lane 8.
RESAMPLE_INLINE F ramp(int part) {
    F t;
    for (int i = 0; i < lanes; ++i)
        t[i] = static_cast<float>(part * lanes + i - 8);
    return t;
}

template <class V> RESAMPLE_INLINE V horner(const float (&c)[4], V z) {
    return ((c[3] * z + c[2]) * z + c[1]) * z + c[0];
}

/// Kernel weights at the phases f.
template <int N, class V> RESAMPLE_INLINE void weigh(V f, const ResampleKernel& kernel, V* w) {
    if constexpr (N == 1) {
        w[0] = V{} + 1.0f;
        return;
    }
    constexpr int half = N / 2;
    const V u = f - 0.5f, z = u * u, g = f - f * f, gu = g * u;
    V sum = {};
#pragma GCC unroll 4
    for (int k = 0; k < half - 1; ++k) {
        const V even = g * horner(kernel.even[k], z), odd = gu * horner(kernel.odd[k], z);
        w[k] = even - odd;
        w[N - 1 - k] = even + odd;
        sum += even;
    }
    const V odd = gu * horner(kernel.odd[half - 1], z);
    w[half - 1] = ((1.0f - f) - sum) - odd;
    w[half] = (f - sum) + odd;
}

template <int N, class V> RESAMPLE_INLINE V sum_squares(const V* w) {
    V sum = w[0] * w[0];
#pragma GCC unroll 8
    for (int k = 1; k < N; ++k)
        sum += w[k] * w[k];
    return sum;
}

/// Sums over the taps of one vector of outputs.
struct Sums {
    F value;               // k s, or k^2 s
    F factor;              // variance factor, of all taps
    F weight, lost, there; // masked: k over good pixels, |k| over missing ones, k^2 over good ones
    F total;               // masked: |k| of all taps
};

/// What the Jacobian makes of the sums: out = gain * value + base, variance factor = factor * sum of squares.
struct Scale {
    F gain, base, factor;
};

RESAMPLE_INLINE Scale scale_of(const ResampleTask& task) {
    return {all(task.gain), all(task.base), all(task.factor)};
}
RESAMPLE_INLINE Scale scale_of(const ResampleTask& task, F jacobian) {
    const F area = jacobian * jacobian, gain = task.scale * (task.square ? area : jacobian);
    return {gain, gain * task.back + task.offset, task.per_area * area};
}

/// Where a vector of outputs goes.
struct Place {
    float* out;
    unsigned char* factor;

    RESAMPLE_INLINE Place(const ResampleTask& task, int row, int part)
        : out(task.out + row * task.out_stride + part * lanes),
          factor(task.factors + row * task.factor_stride + part * lanes) {}
};

RESAMPLE_INLINE void finish(Place to, const Scale& scale, F value, F factor) {
    store(to.out, scale.gain * value + scale.base);
    // As integers, because these have a minimum whatever the compiler may assume of NaN.
    I rounded = __builtin_convertvector(factor + 0.5f, I);
    rounded = rounded > 1 ? rounded : I{} + 1;
    store_bytes(to.factor, rounded);
}

template <bool Masked>
RESAMPLE_INLINE void finish(const ResampleTask& task, int row, int part, const Scale& scale, Sums s) {
    F value = s.value;
    if constexpr (Masked) {
        const I touched = s.lost > 0.0f,
                gone = (s.lost > task.max_lost * s.total) | (s.weight < 1.0f - task.max_lost);
        const F whole = task.square ? s.weight * s.weight : s.weight;
        value = (touched | (task.square ? I{} - 1 : I{})) ? value / whole : value;
        value = gone ? all(__builtin_nanf("")) : value;
        s.factor = touched ? scale.factor * (s.there / (s.weight * s.weight)) : s.factor;
        s.factor = gone ? F{} : s.factor;
        const I flag = touched & ~gone & 1;
        store_bytes(task.interpolated + row * block_columns + part * lanes, flag);
    }
    finish(Place(task, row, part), scale, value, s.factor);
}

// --- the plan of a row

inline double cubic(const double (&c)[4], double x) {
    return ((c[3] * x + c[2]) * x + c[1]) * x + c[0];
}

__attribute__((noinline)) void plan_axis(const double (&c)[4], double first, std::int32_t* __restrict__ whole,
                                         float (*__restrict__ about)[16]) {
    for (int i = 0; i < 16; ++i) {
        const double x = first + 16.0 * i;
        double at = cubic(c, x);
        at = at > -1e9 ? at : -1e9;
        at = at < 1e9 ? at : 1e9;
        const double base = __builtin_floor(at);
        whole[i] = static_cast<std::int32_t>(base);
        about[0][i] = static_cast<float>(at - base);
        about[1][i] = static_cast<float>((3 * c[3] * x + 2 * c[2]) * x + c[1]);
        about[2][i] = static_cast<float>(3 * c[3] * x + c[2]);
        about[3][i] = static_cast<float>(c[3]);
    }
}

__attribute__((noinline)) void plan_jacobian(const ResampleLine& line, double first,
                                             float (*__restrict__ about)[16]) {
    if (line.linear) {
        const float j = static_cast<float>(line.px[0] * line.qy[0] - line.py[0] * line.qx[0]);
        for (int i = 0; i < 16; ++i) {
            about[0][i] = j;
            about[1][i] = about[2][i] = 0;
        }
        return;
    }
    constexpr double reach = 6.0;
    for (int i = 0; i < 16; ++i) {
        const double x = first + 16.0 * i;
        double j[3];
        for (int n = 0; n < 3; ++n) {
            const double at = x + reach * (n - 1);
            j[n] = cubic(line.px, at) * cubic(line.qy, at) - cubic(line.py, at) * cubic(line.qx, at);
        }
        about[0][i] = static_cast<float>(j[1]);
        about[1][i] = static_cast<float>((j[2] - j[0]) * (0.5 / reach));
        about[2][i] = static_cast<float>((j[2] + j[0] - 2 * j[1]) * (0.5 / (reach * reach)));
    }
}

void plan(const ResampleLine& line, double first, ResamplePlan& plan) {
    plan_axis(line.p, first, plan.ip, plan.p);
    plan_axis(line.q, first, plan.iq, plan.q);
    plan_jacobian(line, first, plan.jacobian);
    for (int i = 0; i < 16; ++i) {
        const double x = first + 16.0 * i;
        plan.drift[0][i] = static_cast<float>(cubic(line.qy, x) - 1.0);
        plan.drift[1][i] = static_cast<float>((3 * line.qy[3] * x + 2 * line.qy[2]) * x + line.qy[1]);
    }
}

/// Weights and sums of squares of 16 blocks, as straight lines or quadratics of the place in the block.
template <int N, bool Curved>
RESAMPLE_INLINE void along_blocks(const float (&p)[3][16], const ResampleKernel& kernel, ResampleAlong& to) {
    constexpr float reach = 6.0f; // the weights are exact in the lanes -6, 6 and, where curved, 0
    for (int i = 0; i < 16; i += lanes) {
        const F p0 = load(p[0] + i), p1 = load(p[1] + i) - 1.0f, p2 = Curved ? load(p[2] + i) : F{};
        F left[N], right[N];
        weigh<N>(p0 + reach * (reach * p2 - p1), kernel, left);
        weigh<N>(p0 + reach * (reach * p2 + p1), kernel, right);
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) {
            store(to.weight[0][k] + i, (right[k] + left[k]) * 0.5f);
            store(to.weight[1][k] + i, (right[k] - left[k]) * (0.5f / reach));
        }
        const F a = sum_squares<N>(left), c = sum_squares<N>(right);
        store(to.square[0] + i, (c + a) * 0.5f);
        store(to.square[1] + i, (c - a) * (0.5f / reach));
        if constexpr (Curved) {
            F here[N];
            weigh<N>(p0, kernel, here);
#pragma GCC unroll 8
            for (int k = 0; k < N; ++k) {
                store(to.weight[0][k] + i, here[k]);
                store(to.weight[2][k] + i,
                      ((right[k] - here[k]) + (left[k] - here[k])) * (0.5f / (reach * reach)));
            }
        }
    }
}

template <int N>
void along(const ResampleLine& line, double first, const ResampleKernel& kernel, bool curved,
           ResampleAlong& to) {
    alignas(64) float p[4][16];
    if (curved) {
        plan_axis(line.p, first, to.ip, p);
        plan_jacobian(line, first, to.jacobian);
        along_blocks<N, true>(reinterpret_cast<const float(&)[3][16]>(p), kernel, to);
        return;
    }
    // A straight line, and one Jacobian for all.
    const double step = line.p[1];
    for (int i = 0; i < 16; ++i) {
        const double at = line.p[0] + step * (first + 16.0 * i), base = __builtin_floor(at);
        to.ip[i] = static_cast<std::int32_t>(base);
        p[0][i] = static_cast<float>(at - base);
        p[1][i] = static_cast<float>(step);
    }
    along_blocks<N, false>(reinterpret_cast<const float(&)[3][16]>(p), kernel, to);
}

// --- blocks of nearly unit step: contiguous loads

/// Rows computed together, which share the loads of the pixels: where pairs share the weights along q, and where they
/// do not. The weights along q stay in registers, of which there are 16 or 32.
constexpr int joint_rows = lanes == 16 ? 4 : 2, joint_own_rows = lanes == 16 ? 3 : 1;

/// Weights along q of all rows of a group: at row s of it, across[0][r] + s * across[1][r].
template <int N> struct Across {
    F weight[2][N + 1];
    F square[2];
    bool passes; // a whole number of q lies within the block: N + 1 rows of pixels
};

template <bool Curved> RESAMPLE_INLINE F weight_along(const ResampleAlong& along, int b, int k, F t) {
    if constexpr (Curved)
        return along.weight[0][k][b] + t * (along.weight[1][k][b] + t * along.weight[2][k][b]);
    else
        return along.weight[0][k][b] + t * along.weight[1][k][b];
}

/// Variance factor of all taps of one row. Not curved: linear, and `across` holds what the Jacobian makes of it.
template <int N, bool Curved>
RESAMPLE_INLINE F straight_factor(const ResampleAlong& along, int b, F t, const Scale& scale, const Across<N>& across,
                                  float s) {
    const F factor =
        (along.square[0][b] + t * along.square[1][b]) * (across.square[0] + s * across.square[1]);
    return Curved ? scale.factor * factor : factor;
}

template <bool Curved> RESAMPLE_INLINE Scale straight_scale(const ResampleTask& task, const ResampleAlong& along, F t) {
    if constexpr (!Curved)
        return scale_of(task);
    const auto& j = along.jacobian;
    const int b = task.block;
    return scale_of(task, j[0][b] + t * (j[1][b] + t * j[2][b]));
}

/// Row of the group that a row's weights along q are taken at.
RESAMPLE_INLINE float across_at(const ResampleTask& task, int row, bool pairs) {
    const int s = task.first + row;
    return pairs ? static_cast<float>(s & ~1) + 0.5f : static_cast<float>(s);
}

/// Sum over the taps along q, of one tap along p and R rows; source[r] are the rows of pixels. Sums start from 0: which
/// product is rounded first must not be the compiler's choice.
template <int N, int R, int Taps, int Sets>
RESAMPLE_INLINE void column(const F (&v)[Sets][N + 1], const float* const* source, int k, F* sum) {
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i)
        sum[i] = F{};
#pragma GCC unroll 16
    for (int r = 0; r < R + Taps - 1; ++r) {
        F pixel = load(source[r] + k);
        if constexpr (R > 1)
            asm("" : "+x"(pixel));
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i)
            if (r >= i && r - i < Taps)
                sum[i] += v[i * Sets / R][r - i] * pixel;
    }
}

/// Rows `row` to `row` + R - 1, which begin at the same pixel of the buffer and miss none.
template <int N, int R, bool Passes, bool Curved, bool Pairs>
RESAMPLE_INLINE void straight_rows(const ResampleTask& task, int row, F t, const Across<N>& across,
                                   const float* source, std::ptrdiff_t stride, Place to, std::ptrdiff_t out_stride,
                                   std::ptrdiff_t factor_stride) {
    const ResampleAlong* const along = task.along + row;
    const int b = task.block;
    constexpr int taps = N + Passes, sets = Pairs && R > 1 ? R / 2 : R;
    F v[sets][N + 1], value[R];
    float s[sets];
#pragma GCC unroll 4
    for (int i = 0; i < sets; ++i) {
        s[i] = across_at(task, row + i * (R / sets), Pairs);
#pragma GCC unroll 16
        for (int r = 0; r < taps; ++r)
            v[i][r] = across.weight[0][r] + s[i] * across.weight[1][r];
    }
    const float* rows[R + taps - 1];
#pragma GCC unroll 16
    for (int r = 0; r < R + taps - 1; ++r)
        rows[r] = source + r * stride;
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i)
        value[i] = F{};
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) {
        F sum[R];
        column<N, R, taps, sets>(v, rows, k, sum);
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i)
            value[i] += weight_along<Curved>(along[i], b, k, t) * sum[i];
    }
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
        const Scale scale = straight_scale<Curved>(task, along[i], t);
        finish(to, scale, value[i], straight_factor<N, Curved>(along[i], b, t, scale, across, s[i * sets / R]));
        to.out += out_stride, to.factor += factor_stride;
    }
}

template <int N, bool Passes, bool Curved, bool Pairs>
__attribute__((noinline)) void straight_run(const ResampleTask& of, int row, int end, int part,
                                            const Across<N>& across, const float* source) {
    // A copy whose members no store to the outputs can change.
    const ResampleTask task = of;
    const F t = ramp(part);
    Place to(task, row, part);
    const auto rows = [&]<int R>() __attribute__((always_inline)) {
        straight_rows<N, R, Passes, Curved, Pairs>(task, row, t, across, source, task.stride, to, task.out_stride,
                                                   task.factor_stride);
        row += R;
        source += R * task.stride;
        to.out += R * task.out_stride, to.factor += R * task.factor_stride;
    };
    if constexpr (Pairs) {
        if ((task.first + row) & 1)
            rows.template operator()<1>();
        while (row + joint_rows <= end)
            rows.template operator()<joint_rows>();
        if constexpr (joint_rows > 2)
            if (row + 2 <= end)
                rows.template operator()<2>();
    } else if constexpr (joint_own_rows > 1)
        while (row + joint_own_rows <= end)
            rows.template operator()<joint_own_rows>();
    while (row < end)
        rows.template operator()<1>();
}

/// Whether a pixel is missing in a row under the kernels of one vector of outputs.
template <int N> RESAMPLE_INLINE bool misses(const float* source) {
    I found = not_finite(load(source + N - 1));
    for (int k = 0; k < N - 1; k += lanes)
        found |= not_finite(load(source + k));
    return any(found);
}

/// Which of `taps` rows miss a pixel there, as bits.
template <int N> RESAMPLE_INLINE unsigned missing_rows(const float* source, int taps, std::ptrdiff_t stride) {
    unsigned bits = 0;
    for (int r = 0; r < taps; ++r)
        bits |= static_cast<unsigned>(misses<N>(source + r * stride)) << r;
    return bits;
}

/// One row near missing pixels: those are found first, and count as 0 in the sums. `holes`: rows that miss a pixel.
template <int N, bool Curved>
__attribute__((noinline)) void straight_masked(const ResampleTask& task, int row, int part, const Across<N>& across,
                                               const float* source, unsigned holes) {
    const F t = ramp(part);
    const float s = across_at(task, row, task.pairs);
    F w[N], magnitude = {}, magnitude_across = {}, whole = {}, squares = {};
#pragma GCC unroll 8
    for (int k = 0; k < N; ++k) {
        w[k] = weight_along<Curved>(task.along[row], task.block, k, t);
        magnitude += fabs(w[k]);
        whole += w[k];
        squares += w[k] * w[k];
    }
    Sums sums = {};
    F v[1][N + 1] = {};
    const float* rows[N + 1];
    float filled[N + 1][N - 1 + lanes];
    for (int r = 0; r < N + across.passes; ++r, source += task.stride) {
        v[0][r] = across.weight[0][r] + s * across.weight[1][r];
        magnitude_across += fabs(v[0][r]);
        rows[r] = source;
        if (!(holes >> r & 1)) { // most rows of pixels near a missing one
            sums.weight += v[0][r] * whole;
            sums.there += (v[0][r] * v[0][r]) * squares;
            continue;
        }
        F weight = {}, lost = {}, there = {};
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) {
            const F pixel = load(source + k);
            const I bad = not_finite(pixel);
            weight += bad ? F{} : w[k];
            lost += bad ? fabs(w[k]) : F{};
            there += bad ? F{} : w[k] * w[k];
        }
        sums.weight += v[0][r] * weight;
        sums.lost += fabs(v[0][r]) * lost;
        sums.there += (v[0][r] * v[0][r]) * there;
        const auto fill = [&](int k) __attribute__((always_inline)) {
            const F pixel = load(source + k);
            store(filled[r] + k, not_finite(pixel) ? F{} : pixel);
        };
        for (int k = 0; k < N - 1; k += lanes)
            fill(k);
        fill(N - 1);
        rows[r] = filled[r];
    }
    for (int k = 0; k < N; ++k) {
        F sum;
        if (across.passes)
            column<N, 1, N + 1, 1>(v, rows, k, &sum);
        else
            column<N, 1, N, 1>(v, rows, k, &sum);
        sums.value += w[k] * sum;
    }
    const Scale scale = straight_scale<Curved>(task, task.along[row], t);
    sums.total = magnitude * magnitude_across;
    sums.factor = straight_factor<N, Curved>(task.along[row], task.block, t, scale, across, s);
    finish<true>(task, row, part, scale, sums);
}

template <int N> void straight(const ResampleTask& task) {
    using Run = void (*)(const ResampleTask&, int, int, int, const Across<N>&, const float*);
    constexpr Run runs[2][2][2] = {
        {{straight_run<N, false, false, false>, straight_run<N, false, false, true>},
         {straight_run<N, false, true, false>, straight_run<N, false, true, true>}},
        {{straight_run<N, true, false, false>, straight_run<N, true, false, true>},
         {straight_run<N, true, true, false>, straight_run<N, true, true, true>}}};
    // The next block's outputs: their rows are too far apart for the processor to see what comes.
    const float* out = task.next_out;
    const unsigned char* factor = task.next_factors;
    for (int row = 0; row < task.rows; ++row, out += task.out_stride, factor += task.factor_stride) {
        __builtin_prefetch(out, 1);
        __builtin_prefetch(factor, 1);
    }
    const float reach = task.reach, slope = 0.5f / reach;
    const ResamplePlan& center = *task.center;
    const int b = task.block;
    const float c0 = center.q[0][b], c1 = center.q[1][b], c2 = center.q[2][b], c3 = center.q[3][b];
    for (int part = 0; part < block_columns / lanes; ++part) {
        const F t = ramp(part);
        const F q = c0 + t * (c1 + t * (c2 + t * c3));
        const I whole = floor(q);
        // The block passes at most one whole number.
        const I step = whole - whole[0];
        const bool falls = any(step < 0), rises = any(step > 0);
        const int lowest = whole[0] - falls;
        const F f = q - __builtin_convertvector(whole, F), drift = center.drift[0][b] + t * center.drift[1][b];
        F low[N], high[N];
        weigh<N>(f - reach * drift, *task.kernel, low);
        weigh<N>(f + reach * drift, *task.kernel, high);
        Across<N> across;
        across.passes = falls || rises;
        const I second = whole > lowest;
        F before[2] = {};
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) {
            const F now[2] = {(high[k] + low[k]) * 0.5f, (high[k] - low[k]) * slope};
            for (int n = 0; n < 2; ++n) {
                across.weight[n][k] = second ? before[n] : now[n];
                before[n] = now[n];
            }
        }
        for (int n = 0; n < 2; ++n)
            across.weight[n][N] = second ? before[n] : F{};
        const F a = sum_squares<N>(low), c = sum_squares<N>(high);
        const float unit = task.curved ? 1.0f : task.factor;
        across.square[0] = (a + c) * (0.5f * unit);
        across.square[1] = (c - a) * (slope * unit);

        const std::ptrdiff_t top =
            center.iq[b] + lowest - task.q0 - (N - 1) / 2 + task.first;
        if (task.even) {
            const float* source =
                task.buffer + top * task.stride + (task.along->ip[b] - task.p0) - (N - 1) / 2 - 8 + part * lanes;
            runs[across.passes][task.curved][task.pairs](task, 0, task.rows, part, across, source);
            continue;
        }
        for (int row = 0, end; row < task.rows; row = end) {
            const std::int32_t ip = task.along[row].ip[b];
            const float* source = task.buffer + (top + row) * task.stride + (ip - task.p0) - (N - 1) / 2 - 8 +
                                  part * lanes;
            end = row + 1;
            const unsigned holes = task.masked[row] ? missing_rows<N>(source, N + across.passes, task.stride) : 0;
            if (holes) {
                (task.curved ? straight_masked<N, true> : straight_masked<N, false>)(task, row, part, across, source,
                                                                                     holes);
                continue;
            }
            if (task.masked[row])
                memset(task.interpolated + row * block_columns + part * lanes, 0, lanes);
            else
                while (end < task.rows && !task.masked[end] && task.along[end].ip[b] == ip)
                    ++end;
            runs[across.passes][task.curved][task.pairs](task, row, end, part, across, source);
        }
    }
}

// --- blocks of any map: pixel by pixel, one vector along p

/// Taps of one buffer row under the kernel of one output; the spare ones have no weight.
template <int N> struct Window {
    static constexpr int width = N > 4 ? 8 : 4;
    typedef float V __attribute__((vector_size(4 * width)));
    typedef std::int32_t M __attribute__((vector_size(4 * width)));
    typedef float Loose __attribute__((vector_size(4 * width), aligned(4), may_alias));
};

RESAMPLE_INLINE void interleave(const Window<6>::V& a, const Window<6>::V& b, Window<6>::V* out) {
    out[0] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
    out[1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

RESAMPLE_INLINE void interleave(const Window<4>::V& a, const Window<4>::V& b, Window<4>::V* out) {
    out[0] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
    out[1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
}

/// Whether any lane of a comparison of eight holds.
RESAMPLE_INLINE bool any_of_eight(Window<8>::M condition) {
    std::uint64_t words[4];
    memcpy(words, &condition, sizeof words);
    return (words[0] | words[1] | words[2] | words[3]) != 0;
}

/// A square of width x width numbers, transposed by interleaving its halves log2(width) times.
template <class V> RESAMPLE_INLINE void transpose(V* x) {
    constexpr int width = sizeof(V) / 4;
#pragma GCC unroll 4
    for (int n = 1; n < width; n *= 2) {
        V y[width];
#pragma GCC unroll 8
        for (int i = 0; i < width / 2; ++i)
            interleave(x[i], x[i + width / 2], y + 2 * i);
#pragma GCC unroll 8
        for (int i = 0; i < width; ++i)
            x[i] = y[i];
    }
}

struct FreeWeights {
    float p[most_taps][16], q[most_taps][16];
    std::int32_t start[16]; // of the window in the buffer
};

template <int N> RESAMPLE_INLINE void free_weights(const ResampleTask& task, int row, FreeWeights& to) {
    const ResamplePlan& plan = task.plans[row];
    const int b = task.block;
    const int p_first = plan.ip[b] - task.p0 - (N - 1) / 2, q_first = plan.iq[b] - task.q0 - (N - 1) / 2;
    const int p_last = static_cast<int>(task.width) - 8, q_last = static_cast<int>(task.height) - N;
    for (int part = 0; part < block_columns / lanes; ++part) {
        const F t = ramp(part);
        const F p = plan.p[0][b] + t * (plan.p[1][b] + t * (plan.p[2][b] + t * plan.p[3][b]));
        const F q = plan.q[0][b] + t * (plan.q[1][b] + t * (plan.q[2][b] + t * plan.q[3][b]));
        const I ip = floor(p), iq = floor(q);
        F w[N];
        weigh<N>(p - __builtin_convertvector(ip, F), *task.kernel, w);
        for (int k = 0; k < N; ++k)
            store(to.p[k] + part * lanes, w[k]);
        weigh<N>(q - __builtin_convertvector(iq, F), *task.kernel, w);
        for (int k = 0; k < N; ++k)
            store(to.q[k] + part * lanes, w[k]);
        // The buffer ends in a ring of missing pixels: what lies beyond it finds nothing there either.
        I x = ip + p_first, y = iq + q_first;
        x = x < 0 ? I{} : x;
        x = x > p_last ? I{} + p_last : x;
        y = y < 0 ? I{} : y;
        y = y > q_last ? I{} + q_last : y;
        const I start = y * static_cast<int>(task.stride) + x;
        memcpy(to.start + part * lanes, &start, sizeof start);
    }
}

template <int N, bool Masked> RESAMPLE_INLINE void free_row(const ResampleTask& task, int row) {
    using V = typename Window<N>::V;
    using M = typename Window<N>::M;
    constexpr int width = Window<N>::width, sums = Masked ? 4 : 1;
    FreeWeights weights;
    free_weights<N>(task, row, weights);
    float columns[sums][N][16]; // sums over q, of each tap along p
    for (int first = 0; first < 16; first += width) {
        V sum[sums][width];
#pragma GCC unroll 8
        for (int i = 0; i < width; ++i) {
            const float* source = task.buffer + weights.start[first + i];
            V value = {}, weight = {}, lost = {}, squares = {};
#pragma GCC unroll 8
            for (int r = 0; r < N; ++r) {
                const V pixel = *reinterpret_cast<const typename Window<N>::Loose*>(source + r * task.stride);
                const float v = weights.q[r][first + i];
                if constexpr (Masked) {
                    const float magnitude = v < 0 ? -v : v, square = task.square ? v * v : v;
                    const M good = (pixel - pixel) == 0.0f;
                    value += square * (good ? pixel : V{});
                    weight += good ? V{} + v : V{};
                    lost += good ? V{} : V{} + magnitude;
                    squares += good ? V{} + v * v : V{};
                } else
                    value += v * pixel;
            }
            sum[0][i] = value;
            if constexpr (Masked) {
                sum[1][i] = weight;
                sum[2][i] = lost;
                sum[3][i] = squares;
            }
        }
#pragma GCC unroll 4
        for (int n = 0; n < sums; ++n) {
            transpose(sum[n]);
#pragma GCC unroll 8
            for (int k = 0; k < N; ++k)
                memcpy(columns[n][k] + first, &sum[n][k], sizeof(V));
        }
    }
    const ResamplePlan& plan = task.plans[row];
    const int b = task.block;
    for (int part = 0; part < block_columns / lanes; ++part) {
        const F t = ramp(part);
        const int at = part * lanes;
        Sums s = {};
        F along = {}, across = {}, magnitude = {}, magnitude_across = {};
#pragma GCC unroll 8
        for (int k = 0; k < N; ++k) {
            const F w = load(weights.p[k] + at), v = load(weights.q[k] + at);
            along += w * w;
            across += v * v;
            if constexpr (Masked) {
                s.value += (task.square ? w * w : w) * load(columns[0][k] + at);
                s.weight += w * load(columns[1][k] + at);
                s.lost += fabs(w) * load(columns[2][k] + at);
                s.there += w * w * load(columns[3][k] + at);
                magnitude += fabs(w);
                magnitude_across += fabs(v);
            } else
                s.value += w * load(columns[0][k] + at);
        }
        const F jacobian = plan.jacobian[0][b] + t * (plan.jacobian[1][b] + t * plan.jacobian[2][b]);
        const Scale scale = scale_of(task, jacobian);
        s.factor = scale.factor * (along * across);
        s.total = magnitude * magnitude_across;
        finish<Masked>(task, row, part, scale, s);
    }
}

template <int N> void free_rows(const ResampleTask& task) {
    for (int row = 0; row < task.rows; ++row) {
        if (task.masked[row])
            free_row<N, true>(task, row);
        else
            free_row<N, false>(task, row);
    }
}

// --- the frame, turned into the buffer

/// Copies a row, backwards where Step is -1; whether a pixel is not finite.
template <int Step>
__attribute__((noinline)) bool turn_row(const float* __restrict__ src, std::ptrdiff_t n, float level,
                                        float* __restrict__ dst) {
    // 0 times a number is 0, else NaN: one operation a vector, and two sums, so that they need not wait.
    F sum[2] = {};
    std::ptrdiff_t i = 0;
    for (; i + 2 * lanes <= n; i += 2 * lanes)
#pragma GCC unroll 2
        for (int part = 0; part < 2; ++part) {
            const std::ptrdiff_t at = i + part * lanes;
            F v;
            if constexpr (Step > 0)
                v = load(src + at);
            else
                for (int lane = 0; lane < lanes; ++lane)
                    v[lane] = src[-at - lane];
            v -= level;
            store(dst + at, v);
            sum[part] += v * 0.0f;
        }
    F rest = sum[0] + sum[1];
    for (; i < n; ++i) {
        dst[i] = src[Step * i] - level;
        rest[0] += dst[i] * 0.0f;
    }
    return any(rest != 0.0f);
}

/// Transposes 8 x 8 pixels, dq being 1 or -1; whether one of them is not finite.
RESAMPLE_INLINE bool turn_square(const float* src, std::ptrdiff_t dp, std::ptrdiff_t dq, float level,
                                 float* dst, std::ptrdiff_t stride) {
    Window<8>::V x[8];
    Window<8>::M bad = {};
    for (int n = 0; n < 8; ++n) {
        x[n] = *reinterpret_cast<const Window<8>::Loose*>(src + n * dp + (dq < 0 ? -7 : 0)) - level;
        bad |= (x[n] - x[n]) != 0.0f;
    }
    transpose(x);
    for (int n = 0; n < 8; ++n)
        memcpy(dst + (dq < 0 ? 7 - n : n) * stride, &x[n], sizeof x[n]);
    return any_of_eight(bad);
}

void turn(const float* src, std::ptrdiff_t dp, std::ptrdiff_t dq, std::ptrdiff_t nx, std::ptrdiff_t ny,
          float level, float* dst, std::ptrdiff_t stride, unsigned char* suspect) {
    if (dp == 1 || dp == -1) {
        for (std::ptrdiff_t j = 0; j < ny; ++j)
            suspect[j] = (dp == 1 ? turn_row<1> : turn_row<-1>)(src + j * dq, nx, level, dst + j * stride);
        return;
    }
    memset(suspect, 0, static_cast<size_t>(ny));
    // Along the rows of the source, which prefetching follows; the buffer stays in the cache.
    for (std::ptrdiff_t i = 0; i < nx; i += 8)
        for (std::ptrdiff_t j = 0; j < ny; j += 8) {
            const float* from = src + i * dp + j * dq;
            float* to = dst + j * stride + i;
            if (j + 8 <= ny && i + 8 <= nx) {
                if (turn_square(from, dp, dq, level, to, stride))
                    memset(suspect + j, 1, 8);
                continue;
            }
            for (std::ptrdiff_t m = 0; m < 8 && j + m < ny; ++m)
                for (std::ptrdiff_t n = 0; n < 8 && i + n < nx; ++n) {
                    const float v = from[n * dp + m * dq] - level;
                    to[m * stride + n] = v;
                    suspect[j + m] |= v - v != 0.0f;
                }
        }
}

std::uint64_t scan(const float* row, std::ptrdiff_t n, std::ptrdiff_t cell) {
    using V = typename Window<8>::V;
    using M = typename Window<8>::M;
    std::uint64_t bits = 0;
    for (std::ptrdiff_t i = 0, bit = 0; i < n; i += cell, ++bit) {
        const std::ptrdiff_t end = i + cell < n ? i + cell : n;
        M bad = {};
        for (std::ptrdiff_t at = i; at < end; at += 8) {
            const V v = *reinterpret_cast<const typename Window<8>::Loose*>(row + at);
            bad |= (v - v) != 0.0f;
        }
        bits |= static_cast<std::uint64_t>(any_of_eight(bad)) << bit;
    }
    return bits;
}

#undef RESAMPLE_INLINE

} // namespace resampling

constexpr ResampleRows resample_rows = {
    resampling::plan,
    {resampling::along<1>, resampling::along<2>, resampling::along<4>, resampling::along<6>,
     resampling::along<8>},
    {resampling::straight<1>, resampling::straight<2>, resampling::straight<4>, resampling::straight<6>,
     resampling::straight<8>},
    {resampling::free_rows<1>, resampling::free_rows<2>, resampling::free_rows<4>, resampling::free_rows<6>,
     resampling::free_rows<8>},
    resampling::turn,
    resampling::scan,
};
