// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of the
// standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.
//
// All functions work on one block (rows/combine.hpp), on as many of its pixels at a time as a register holds: GCC 12
// goes through wider vectors lane by lane. Loops run over the frames. Comparisons with NaN are false, which is how
// missing samples drop out.

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi" // vectors by value: everything below is inlined

#define FASTACK_INLINE inline __attribute__((always_inline))

constexpr int LANES = COMBINE_LANES; // of a block
#if defined(__AVX512F__)
constexpr int WIDTH = 16; // of a vector
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float VF __attribute__((vector_size(4 * WIDTH)));
typedef int32_t VI __attribute__((vector_size(4 * WIDTH)));
typedef uint8_t VB __attribute__((vector_size(WIDTH)));
typedef uint16_t VH __attribute__((vector_size(2 * WIDTH)));

FASTACK_INLINE VF load(const float* p) {
    VF v;
    memcpy(&v, p, sizeof v);
    return v;
}
FASTACK_INLINE void store(float* p, VF v) { memcpy(p, &v, sizeof v); }
FASTACK_INLINE void store(int32_t* p, VI v) { memcpy(p, &v, sizeof v); }
FASTACK_INLINE VF sample(const float* x, int i) { return load(x + (ptrdiff_t)i * LANES); }
FASTACK_INLINE VF splat(float s) { return VF{} + s; }
FASTACK_INLINE VI splat_int(int s) { return VI{} + s; }
FASTACK_INLINE VF smaller(VF a, VF b) { return a < b ? a : b; }
FASTACK_INLINE VF larger(VF a, VF b) { return a > b ? a : b; }
FASTACK_INLINE VF positive(VF a) { return a < VF{} ? VF{} : a; } // NaN stays
FASTACK_INLINE VF magnitude(VF a) { return a < VF{} ? -a : a; }
FASTACK_INLINE VI widen(const uint8_t* p) {
#if defined(__AVX512F__)
    return (VI)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(__AVX2__)
    return (VI)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    // in steps of two: beyond that GCC 12 goes lane by lane
    VB bytes;
    memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(__builtin_convertvector(bytes, VH), VI);
#endif
}
FASTACK_INLINE VF to_float(VI a) { return __builtin_convertvector(a, VF); }
FASTACK_INLINE VF root(VF a) {
    float lanes[WIDTH];
    store(lanes, a);
    for (int l = 0; l < WIDTH; ++l)
        lanes[l] = sqrtf(lanes[l]);
    return load(lanes);
}
FASTACK_INLINE bool any(VI mask) {
    int64_t part[sizeof mask / 8];
    memcpy(part, &mask, sizeof mask);
    int64_t all = 0;
    for (unsigned k = 0; k < sizeof mask / 8; ++k)
        all |= part[k];
    return all != 0;
}

FASTACK_INLINE VF load_bytes(const uint8_t* p) { return to_float(widen(p)); }

constexpr float INF = __builtin_inff();
constexpr float NOT_A_NUMBER = __builtin_nanf("");

FASTACK_INLINE VI count_present(const float* x, int n) {
    VI count{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(x, i);
        count -= v == v;
    }
    return count;
}

/// Some lanes of a block, from lane `at` on.
struct Part : CombineBlock {
    int at;

    Part(const CombineBlock& block, int lane) : CombineBlock(block), at(lane) {
        const auto move = [lane](auto*& p) { p = p ? p + lane : p; };
        move(x), move(work), move(shot), move(floor), move(factor), move(shade), move(given), move(near);
        move(shift), move(start), move(curvature), move(bend), move(range), move(stars);
    }
};

/// The sample of rank k (from 0) among the present ones. Exact: a bracket of two sample values that hold rank k
/// between them shrinks with every count, until a count tells that k is next to the pivot. Pivots follow the counts,
/// every third one halves; the first is a guess, or the mean where that is NaN.
inline VF select(const float* x, int n, VI k, VF guess) {
    VF lo = splat(INF), hi = splat(-INF), sum{};
    VI above{}; // samples up to and including hi
    for (int i = 0; i < n; ++i) {
        const VF v = sample(x, i);
        const VI here = v == v;
        lo = smaller(v, lo);
        hi = larger(v, hi);
        sum += here ? v : VF{};
        above -= here;
    }
    VF pivot = guess == guess ? guess : sum / to_float(above);
    VI below{}; // samples under lo
    for (int pass = 1; any(lo < hi); ++pass) {
        pivot = (pivot >= lo) & (pivot < hi) ? pivot : lo;
        VI count{};
        VF under = splat(-INF), over = splat(INF);
        for (int i = 0; i < n; ++i) {
            const VF v = sample(x, i);
            const VI in = v <= pivot;
            count -= in;
            under = larger(in ? v : under, under);
            over = smaller(v > pivot ? v : over, over);
        }
        const VI open = lo < hi, left = open & (count > k), right = open & (count <= k);
        hi = left | (open & (count == k)) ? (left ? under : over) : hi;
        lo = right | (open & (count == k + 1)) ? (right ? over : under) : lo;
        above = left ? count : above;
        below = right ? count : below;
        const VF part = (to_float(k - below) + 0.5f) / to_float(above - below);
        pivot = lo + (hi - lo) * (pass % 3 ? part : splat(0.5f));
    }
    return lo <= hi ? lo : splat(NOT_A_NUMBER);
}

/// Median of the present samples; of an even number the mean of the middle two.
inline VF median_of(const float* x, int n, VI count, VF guess = splat(NOT_A_NUMBER)) {
    const VF lower = select(x, n, (count - 1) >> 1, guess);
    VI up_to{};
    VF next = splat(INF);
    for (int i = 0; i < n; ++i) {
        const VF v = sample(x, i);
        up_to -= v <= lower;
        next = smaller(v > lower ? v : next, next);
    }
    const VF upper = up_to > (count >> 1) ? lower : next;
    return lower + 0.5f * ((count & 1) == 0 ? upper - lower : VF{});
}

/// Mean and standard deviation (of the population) of the samples within [lo, hi]. The sums run over distances
/// from a reference near the mean, which moves, lane by lane, where it turns out to be far off.
struct Moments {
    VF mean, sigma;
    VI count;
};

FASTACK_INLINE Moments moments(const float* x, int n, VF lo, VF hi, VF reference) {
    for (int attempt = 0;; ++attempt) {
        VF sum{}, square{};
        VI count{};
        for (int i = 0; i < n; ++i) {
            const VF v = sample(x, i);
            const VI in = (v >= lo) & (v <= hi);
            const VF d = in ? v - reference : VF{};
            sum += d;
            square += d * d;
            count -= in;
        }
        const VF number = to_float(count), shift = sum / number;
        const VF variance = positive(square / number - shift * shift);
        const VI far = shift * shift > 4.0f * variance;
        if (attempt >= 2 || !any(far))
            return {reference + shift, root(variance), count};
        reference = far ? reference + shift : reference;
    }
}

/// Take the samples outside [lo, hi] out, counting them.
FASTACK_INLINE void keep_between(Part& block, int n, VF lo, VF hi) {
    VI low{}, high{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(block.x, i);
        const VI under = v < lo, over = v > hi;
        low -= under;
        high -= over;
        store(block.x + (ptrdiff_t)i * LANES, under | over ? splat(NOT_A_NUMBER) : v);
    }
    store(block.out->low + block.at, low);
    store(block.out->high + block.at, high);
}

/// Samples within [lo, hi], the others NaN; their number.
FASTACK_INLINE VI copy_between(const float* x, int n, VF lo, VF hi, float* out) {
    VI count{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(x, i);
        const VI in = (v >= lo) & (v <= hi);
        count -= in;
        store(out + (ptrdiff_t)i * LANES, in ? v : splat(NOT_A_NUMBER));
    }
    return count;
}

/// Clip at centre -+ kappa * width until nothing changes; what is out stays out.
template <class Estimate>
FASTACK_INLINE void clip_rounds(const CombineSetup& setup, Part& block, int n, Estimate estimate) {
    VF lo = splat(-INF), hi = splat(INF);
    VI before = count_present(block.x, n);
    VI active = before > 0; // a lane at rest must not move again while others go on
    for (int round = 0; round < setup.rounds; ++round) {
        VF centre, width;
        estimate(lo, hi, centre, width);
        lo = active ? larger(centre - setup.kappa_low * width, lo) : lo;
        hi = active ? smaller(centre + setup.kappa_high * width, hi) : hi;
        VI count{};
        for (int i = 0; i < n; ++i) {
            const VF v = sample(block.x, i);
            count -= (v >= lo) & (v <= hi);
        }
        active &= count != before;
        before = count;
        if (!any(active))
            break;
    }
    keep_between(block, n, lo, hi);
}

inline void reject_sigma(const CombineSetup& setup, Part& block, int n) {
    VF reference = sample(block.x, 0);
    reference = reference == reference ? reference : VF{};
    clip_rounds(setup, block, n, [&](VF lo, VF hi, VF& centre, VF& width) {
        const Moments m = moments(block.x, n, lo, hi, reference);
        centre = m.mean;
        width = m.sigma;
        reference = centre == centre ? centre : reference;
    });
}

inline void reject_sigma_median(const CombineSetup& setup, Part& block, int n) {
    VF guess = splat(NOT_A_NUMBER); // the round before's
    clip_rounds(setup, block, n, [&](VF lo, VF hi, VF& centre, VF& width) {
        const VI count = copy_between(block.x, n, lo, hi, block.work);
        guess = centre = median_of(block.work, n, count, guess);
        width = moments(block.work, n, lo, hi, centre).sigma;
    });
}

inline void reject_mad(const CombineSetup& setup, Part& block, int n) {
    VF guess = splat(NOT_A_NUMBER), distance = guess; // of the round before
    clip_rounds(setup, block, n, [&](VF lo, VF hi, VF& centre, VF& width) {
        const VI count = copy_between(block.x, n, lo, hi, block.work);
        guess = centre = median_of(block.work, n, count, guess);
        for (int i = 0; i < n; ++i)
            store(block.work + (ptrdiff_t)i * LANES, magnitude(sample(block.work, i) - centre));
        distance = median_of(block.work, n, count, distance);
        width = 1.4826022f * distance;
    });
}

/// Huber's winsorising: sigma of the samples drawn in to median -+ 1.5 sigma, times 1.134, ten times over.
inline void reject_winsorized(const CombineSetup& setup, Part& block, int n) {
    VF guess = splat(NOT_A_NUMBER); // the round before's
    clip_rounds(setup, block, n, [&](VF lo, VF hi, VF& centre, VF& width) {
        const VI count = copy_between(block.x, n, lo, hi, block.work);
        guess = centre = median_of(block.work, n, count, guess);
        width = moments(block.work, n, lo, hi, centre).sigma;
        for (int step = 0; step < 10; ++step) {
            const VF reach = 1.5f * width;
            VF sum{}, square{}, number{};
            for (int i = 0; i < n; ++i) {
                const VF d = sample(block.work, i) - centre;
                const VF drawn = d < -reach ? -reach : (d > reach ? reach : d);
                sum += d == d ? drawn : VF{};
                square += d == d ? drawn * drawn : VF{};
                number += d == d ? splat(1) : VF{};
            }
            const VF mean = sum / number;
            width = 1.134f * root(positive(square / number - mean * mean));
        }
    });
}

inline void reject_percentile(const CombineSetup& setup, Part& block, int n) {
    const VF centre = median_of(block.x, n, count_present(block.x, n));
    const VF scale = magnitude(centre);
    keep_between(block, n, centre - setup.percentile_low * scale, centre + setup.percentile_high * scale);
}

/// Each lane sorted, missing samples last as +inf. Batcher's merge exchange (Knuth, TAOCP 3, 5.2.2 M).
inline void sort_lanes(const float* x, int n, float* out) {
    for (int i = 0; i < n; ++i) {
        const VF v = sample(x, i);
        store(out + (ptrdiff_t)i * LANES, v == v ? v : splat(INF));
    }
    int top = 1;
    while (2 * top < n)
        top *= 2;
    for (int p = top; p > 0; p /= 2) {
        int q = top, r = 0, d = p;
        while (true) {
            for (int i = 0; i < n - d; ++i)
                if ((i & p) == r) {
                    const VF a = sample(out, i), b = sample(out, i + d);
                    store(out + (ptrdiff_t)i * LANES, smaller(a, b));
                    store(out + (ptrdiff_t)(i + d) * LANES, larger(b, a));
                }
            if (q == p)
                break;
            d = q - p;
            q /= 2;
            r = p;
        }
    }
}

/// Drop the `low` lowest and `high` highest samples of each lane; of equal ones the earlier frame's goes first.
inline void drop_ends(Part& block, int n, const float* sorted, VI count, VI low, VI high) {
    VF lo, hi;
    for (int l = 0; l < WIDTH; ++l) {
        lo[l] = count[l] ? sorted[(ptrdiff_t)low[l] * LANES + l] : -INF;
        hi[l] = count[l] ? sorted[(ptrdiff_t)(count[l] - 1 - high[l]) * LANES + l] : INF;
    }
    VI ties_low = low, ties_high = high; // how many of the samples equal to lo and hi are dropped
    for (int i = 0; i < n; ++i) {
        const VF v = sample(block.x, i);
        ties_low += v < lo;
        ties_high += v > hi;
    }
    for (int i = 0; i < n; ++i) {
        const VF v = sample(block.x, i);
        const VI tie_low = (v == lo) & (ties_low > 0);
        const VI tie_high = (v == hi) & ~tie_low & (ties_high > 0);
        ties_low += tie_low;
        ties_high += tie_high;
        const VI drop = (v < lo) | (v > hi) | tie_low | tie_high;
        store(block.x + (ptrdiff_t)i * LANES, drop ? splat(NOT_A_NUMBER) : v);
    }
    store(block.out->low + block.at, low);
    store(block.out->high + block.at, high);
}

inline void reject_minmax(const CombineSetup& setup, Part& block, int n) {
    const VI count = count_present(block.x, n);
    const VI enough = count > setup.n_low + setup.n_high;
    sort_lanes(block.x, n, block.work);
    drop_ends(block, n, block.work, count, enough & setup.n_low, enough & setup.n_high);
}

/// A straight line through the sorted samples; what lies off it at either end goes, sigma being the mean distance.
inline void reject_linear_fit(const CombineSetup& setup, Part& block, int n) {
    const VI count = count_present(block.x, n);
    const float* sorted = block.work;
    sort_lanes(block.x, n, block.work);
    VI first{}, last = count - 1;
    for (int round = 0; round < setup.rounds; ++round) {
        const VI left = last - first + 1;
        const VF number = to_float(left), middle = 0.5f * to_float(last - first);
        VF reference{};
        for (int l = 0; l < WIDTH; ++l)
            reference[l] = left[l] > 0 ? sorted[(ptrdiff_t)((first[l] + last[l]) / 2) * LANES + l] : 0.0f;
        VF sum{}, moment{};
        for (int i = 0; i < n; ++i) {
            const VI in = (first <= i) & (last >= i);
            const VF d = in ? sample(sorted, i) - reference : VF{};
            sum += d;
            moment += d * (to_float(i - first) - middle);
        }
        // sum of (rank - middle)^2 over ranks 0 .. number - 1
        const VF slope = moment / larger(number * (number * number - 1.0f) / 12.0f, splat(1e-30f));
        const VF centre = sum / number;
        VF distance{};
        for (int i = 0; i < n; ++i) {
            const VI in = (first <= i) & (last >= i);
            const VF d = sample(sorted, i) - reference - centre - slope * (to_float(i - first) - middle);
            distance += in ? magnitude(d) : VF{};
        }
        const VF sigma = distance / number;
        VI from = last + 1, to = first - 1;
        for (int i = 0; i < n; ++i) {
            const VF d = sample(sorted, i) - reference - centre - slope * (to_float(i - first) - middle);
            const VI good = (first <= i) & (last >= i) & (d >= -setup.kappa_low * sigma) & (d <= setup.kappa_high * sigma);
            from = good & (from > i) ? splat_int(i) : from;
            to = good ? splat_int(i) : to;
        }
        // three samples fit any line too well to judge
        const VI active = (left > 3) & (from <= to);
        from = active ? from : first;
        to = active ? to : last;
        const bool changed = any((from != first) | (to != last));
        first = from;
        last = to;
        if (!changed)
            break;
    }
    drop_ends(block, n, sorted, count, first, count - 1 - last);
}

/// Generalised extreme Studentised deviate (Rosner 1983, Technometrics 25, 165): the most distant sample is taken
/// off again and again; the outliers are those up to the last whose distance was above its critical value.
inline void reject_esd(const CombineSetup& setup, Part& block, int n) {
    const VI count = count_present(block.x, n);
    sort_lanes(block.x, n, block.work);
    VI low{}, high{};
    for (int l = 0; l < WIDTH; ++l) {
        const float* column = block.work + l;
        int a = 0, b = count[l] - 1;
        const int most = (int)(setup.max_outliers * (float)count[l]);
        const double middle = count[l] ? column[(ptrdiff_t)(b / 2) * LANES] : 0; // keeps the sums small
        double sum = 0, square = 0;
        for (int j = a; j <= b; ++j) {
            const double d = column[(ptrdiff_t)j * LANES] - middle;
            sum += d;
            square += d * d;
        }
        for (int i = 0; i < most && b - a >= 2; ++i) {
            const int m = b - a + 1;
            const double first = column[(ptrdiff_t)a * LANES] - middle, last = column[(ptrdiff_t)b * LANES] - middle;
            const double mean = sum / m, variance = (square - sum * mean) / (m - 1);
            const double sigma = variance > 0 ? sqrt(variance) : 0;
            const double under = mean - first, over = last - mean, gone = under > over ? first : last;
            sum -= gone;
            square -= gone * gone;
            under > over ? ++a : --b;
            if ((under > over ? under : over) > setup.esd_lambda[m] * sigma) {
                low[l] = a;
                high[l] = count[l] - 1 - b;
            }
        }
    }
    drop_ends(block, n, block.work, count, low, high);
}

FASTACK_INLINE VF variance_of(const CombineFrames& frames, const Part& block, int i, VF level) {
    return sample(block.shot, i) * positive(level + frames.sky[i]) + sample(block.floor, i);
}

/// Variance of a sample for the error of an average. Cut at no light, as in the rejection, an average that its own noise
/// takes below that would have too large a variance in the mean: only a quarter of the read noise is taken for sure.
FASTACK_INLINE VF with_read_noise(VF light, VF read) { return larger(light + read, 0.25f * read); }

FASTACK_INLINE VF error_of(const CombineFrames& frames, const Part& block, int i, VF level) {
    return with_read_noise(sample(block.shot, i) * (level + frames.sky[i]), sample(block.floor, i));
}

FASTACK_INLINE VI near_of(const Part& block, int i) { return widen(block.near + (ptrdiff_t)i * LANES); }

/// What known stars have more in frame i than in the mean of all frames.
FASTACK_INLINE VF star_difference(const CombineFrames& frames, const float* stars, int i) {
    VF d{};
    for (int k = 0; k < frames.components; ++k)
        d += frames.share[(ptrdiff_t)k * frames.n + i] * load(stars + (ptrdiff_t)k * LANES);
    return d;
}

void take_stars(const CombineFrames& frames, const float* stars, const float* from, ptrdiff_t stride, float* to) {
    for (int at = 0; at < LANES; at += WIDTH)
        for (int i = 0; i < frames.n; ++i)
            store(to + (ptrdiff_t)i * LANES + at, load(from + i * stride + at) - star_difference(frames, stars + at, i));
}

/// Weighted mean of that over the samples that are there.
inline VF mean_difference(const CombineFrames& frames, const Part& block) {
    VF sum{}, weights{};
    for (int i = 0; i < frames.n; ++i) {
        const VF v = sample(block.x, i), w = v == v ? splat(frames.weight[i]) : VF{};
        sum += w * star_difference(frames, block.stars, i);
        weights += w;
    }
    return sum / weights;
}

/// Sigma from the noise model, allowance from the local structure of the stack; see docs/combine.md.
template <bool SECOND>
FASTACK_INLINE void reject_noise_rounds(const CombineSetup& setup, const CombineFrames& frames, Part& block) {
    const int n = frames.n;
    float* const x = block.work;                          // samples brought to the stack's seeing
    float* const kept = block.work + (ptrdiff_t)n * LANES; // weight of the samples kept, 0 of the others
    float* const allowed = block.work + 2 * (ptrdiff_t)n * LANES;
    const VF curvature = load(block.curvature), bend = load(block.bend), range = load(block.range);
    const bool structure = block.stars || any((bend > 0.0f) | (range > 0.0f));
    VF start = load(block.start);
    VI count{};
    for (int i = 0; i < n; ++i) {
        VF v = sample(block.x, i);
        if (structure) {
            VF allowance = frames.tolerance[i] * bend + frames.jitter[i] * range;
            v -= frames.seeing[i] * curvature;
            if (block.stars) {
                const VF difference = star_difference(frames, block.stars, i);
                v -= difference;
                allowance += setup.star_error * magnitude(difference);
            }
            store(allowed + (ptrdiff_t)i * LANES, allowance);
        }
        if (SECOND)
            v -= sample(block.shift, i);
        store(x + (ptrdiff_t)i * LANES, v);
        count -= v == v;
    }
    VI sure = count; // samples that the first value rests on: in the second look those above suspicion
    if (SECOND) {
        sure = VI{};
        for (int i = 0; i < n; ++i) {
            const VF v = near_of(block, i) > 0 ? splat(NOT_A_NUMBER) : sample(x, i);
            store(kept + (ptrdiff_t)i * LANES, v);
            sure -= v == v;
        }
        const VI none = sure == 0;
        for (int i = 0; any(none) && i < n; ++i)
            store(kept + (ptrdiff_t)i * LANES, none ? sample(x, i) : sample(kept, i));
        sure = none ? count : sure;
        start = select(kept, n, (sure - 1) >> 1, start);
    }
    VF slack{}; // how far the value itself may be wrong
    if (structure) {
        if (!SECOND)
            start = select(x, n, (count - 1) >> 1, start);
        for (int i = 0; i < n; ++i)
            slack = sample(x, i) == start ? larger(sample(allowed, i), slack) : slack;
    }

    const VI pair = count == 2;
    const VF high2 = pair ? splat(setup.kappa_pair * setup.kappa_pair) : splat(setup.kappa_high * setup.kappa_high);
    const VF low2 = count <= 2 ? splat(1e30f) : splat(setup.kappa_low * setup.kappa_low);
    const float grow2 = setup.kappa_grow > 0 ? setup.kappa_grow * setup.kappa_grow : INF;

    // Variance of the start, a median: pi/2 times that of a mean; of two samples it is the other one's, and the
    // variance of the difference is the sum of both.
    VF value = start, all{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(x, i);
        all += v == v ? variance_of(frames, block, i, value - frames.pedestal) : VF{};
        store(kept + (ptrdiff_t)i * LANES, VF{});
    }
    VF value_variance = pair ? all : 1.5707964f * all / (to_float(count) * to_float(sure));
    VF own = pair ? VF{} : splat(1); // whether the sample's own variance comes on top
    VF twice{};                      // 2 / sum of the weights: kept samples are part of the value
    VI active = count > 0;           // a lane at rest must not move again while others go on

    for (int round = 0; round <= setup.rounds; ++round) {
        VF sum{}, weights{}, variance{}, loose{};
        VI changed{};
        for (int i = 0; i < n; ++i) {
            const VF v = sample(x, i), before = sample(kept, i);
            const VF d = v - value, noise = variance_of(frames, block, i, value - frames.pedestal);
            // a sample that is the value by itself has no distance from it, nor the right to be judged by it
            const VF spread = larger(noise * (own - before * twice) + value_variance, 1e-3f * noise);
            VF distance = magnitude(d), allowance{};
            if (structure) {
                allowance = sample(allowed, i);
                distance = positive(distance - (allowance + slack));
            }
            VF limit = d > 0.0f ? high2 : low2;
            if (SECOND) {
                const VI near = near_of(block, i);
                limit = near > 0 ? smaller(limit, splat(grow2)) : limit;
                limit = near > 1 ? splat(-1) : limit;
            }
            const VI keep = distance * distance <= limit * spread; // false for NaN
            // what a frame of another seeing says of the value counts as much as it is sure
            VF weight = splat(frames.weight[i]);
            if (structure)
                weight *= noise / (noise + allowance * allowance);
            weight = keep ? weight : VF{};
            weight = active ? weight : before;
            store(kept + (ptrdiff_t)i * LANES, weight);
            changed |= (weight > 0.0f) != (before > 0.0f);
            loose += weight * allowance;
            sum += weight * (keep ? v - start : VF{});
            weights += weight;
            variance += weight * weight * (keep ? noise : VF{});
        }
        // A lane that has lost its last sample falls back to the one that it started from, and rests.
        const VI lost = (weights == 0.0f) & active;
        if (any(lost))
            for (int i = 0; i < n; ++i) {
                const VF only = sample(x, i) == start ? splat(frames.weight[i]) : VF{};
                store(kept + (ptrdiff_t)i * LANES, lost ? only : sample(kept, i));
            }
        active &= changed & ~lost;
        if (!any(active))
            break;
        value = active ? start + sum / weights : value;
        value_variance = active ? variance / (weights * weights) : value_variance;
        twice = active ? 2.0f / weights : twice;
        own = active ? splat(1) : own;
        slack = active ? loose / weights : slack;
    }

    VI low{}, high{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(x, i);
        const VI out = (sample(kept, i) == 0.0f) & (v == v);
        low -= out & (v < value);
        high -= out & (v >= value);
        store(block.x + (ptrdiff_t)i * LANES, out ? splat(NOT_A_NUMBER) : sample(block.x, i));
    }
    store(block.out->low + block.at, low);
    store(block.out->high + block.at, high);
}

inline void reject_noise(const CombineSetup& setup, const CombineFrames& frames, Part& block) {
    if (block.near)
        reject_noise_rounds<true>(setup, frames, block);
    else
        reject_noise_rounds<false>(setup, frames, block);
}

/// Vectors of a block.
constexpr int PARTS = LANES / WIDTH;

/// What the noise model knows of the samples of frame i in vector k of a block.
template <bool SHADE> struct Noise {
    static constexpr bool given = false;
    const CombineFrames& frames;
    const CombineSamples& samples;

    FASTACK_INLINE VF factor(int i, int k) const {
        return load_bytes(samples.factor + i * samples.noise_stride + k * WIDTH);
    }
    FASTACK_INLINE VF shade(int i, int k) const { return load(samples.shade + i * samples.noise_stride + k * WIDTH); }
    /// Variance in units of 1/255.
    FASTACK_INLINE VF operator()(int i, int k, VF level) const {
        VF light = frames.shot[i] * positive(level + frames.sky[i]), read = splat(frames.floor[i]);
        if (SHADE) {
            const VF f = shade(i, k);
            light *= f;
            read *= f * f;
        }
        return (light + read) * factor(i, k);
    }
    /// Its part in the variance of an average, with weights squared.
    FASTACK_INLINE VF error(int i, int k, VF level) const {
        VF part = factor(i, k), read = splat(frames.rest[i]);
        if (SHADE) {
            const VF f = shade(i, k);
            part *= f;
            read *= f;
        }
        return part * with_read_noise(frames.light[i] * (level + frames.sky[i]), read);
    }
};

/// Variances that came with the samples.
struct Given {
    static constexpr bool given = true;
    const CombineSamples& samples;

    FASTACK_INLINE VF operator()(int i, int k, VF) const {
        return 255.0f * load(samples.given + i * samples.noise_stride + k * WIDTH);
    }
};

/// Sums over the samples that are there, for the vectors of a block.
struct Sums {
    VF first[PARTS], sum[PARTS], weights[PARTS], light[PARTS], rest[PARTS];
    VI count[PARTS];
};

/// About the first sample, so that a constant stays what it is. EQUAL: all weights are 1.
template <bool EQUAL, class Add>
FASTACK_INLINE void sum_up(const CombineFrames& frames, const CombineSamples& samples, Sums& s, Add add) {
    const int n = frames.n;
    for (int k = 0; k < PARTS; ++k) {
        VF first = load(samples.x + k * WIDTH);
        for (int i = 1; i < n && any(first != first); ++i)
            first = first == first ? first : load(samples.x + i * samples.stride + k * WIDTH);
        s.first[k] = first;
        s.sum[k] = s.weights[k] = s.light[k] = s.rest[k] = VF{};
        s.count[k] = VI{};
    }
    for (int i = 0; i < n; ++i) {
        if (samples.next) // too many frames for the processor to foresee
            __builtin_prefetch(samples.next + i * samples.next_stride, 0, 2);
        if (samples.next_factor)
            __builtin_prefetch(samples.next_factor + i * samples.noise_stride, 0, 2);
#pragma GCC unroll 4
        for (int k = 0; k < PARTS; ++k) {
            const VF v = load(samples.x + i * samples.stride + k * WIDTH);
            const VI here = v == v;
            const VF d = here ? v - s.first[k] : VF{};
            s.count[k] -= here;
            if (EQUAL) {
                s.sum[k] += d;
            } else {
                s.sum[k] += frames.weight[i] * d;
                s.weights[k] += here ? splat(frames.weight[i]) : VF{};
            }
            add(i, k, here);
        }
    }
    for (int k = 0; EQUAL && k < PARTS; ++k)
        s.weights[k] = to_float(s.count[k]);
}

template <bool EQUAL, bool SHADE>
FASTACK_INLINE void average_modelled(const CombineFrames& frames, const CombineSamples& samples, CombinePixels& out) {
    const Noise<SHADE> noise{frames, samples};
    Sums s;
    sum_up<EQUAL>(frames, samples, s, [&](int i, int k, VI here) __attribute__((always_inline)) {
        VF factor = here ? noise.factor(i, k) : VF{};
        if (SHADE) {
            const VF f = noise.shade(i, k);
            factor *= f;
            const VF seen = frames.light[i] * factor;
            s.light[k] += seen;
            s.rest[k] += frames.sky[i] * seen + frames.rest[i] * (f * factor);
        } else {
            s.light[k] += frames.light[i] * factor;
            s.rest[k] += frames.ground[i] * factor;
        }
    });
    for (int k = 0; k < PARTS; ++k) {
        const VF value = s.first[k] + s.sum[k] / s.weights[k], level = value - frames.pedestal;
        VF total = level * s.light[k] + s.rest[k], dark = s.rest[k];
        const VI below = level + frames.least_sky < 0.0f; // some frame's variance may have to be cut
        if (any(below) || frames.least_sky < 0) {
            VF exact{}, shadow{};
            for (int i = 0; i < frames.n; ++i) {
                const VF v = load(samples.x + i * samples.stride + k * WIDTH);
                const float squared = frames.weight[i] * frames.weight[i] * (1.0f / 255.0f);
                exact += v == v ? noise.error(i, k, level) : VF{};
                shadow += v == v ? squared * noise(i, k, VF{}) : VF{};
            }
            total = below ? exact : total;
            dark = frames.least_sky < 0 ? shadow : dark;
        }
        const VF square = s.weights[k] * s.weights[k];
        store(out.data + k * WIDTH, value);
        store(out.variance + k * WIDTH, total / square);
        store(out.background + k * WIDTH, dark / square);
        store(out.count + k * WIDTH, s.count[k]);
    }
}

template <bool EQUAL>
FASTACK_INLINE void average_given(const CombineFrames& frames, const CombineSamples& samples, CombinePixels& out) {
    Sums s;
    sum_up<EQUAL>(frames, samples, s, [&](int i, int k, VI here) __attribute__((always_inline)) {
        const float squared = EQUAL ? 1.0f : frames.weight[i] * frames.weight[i];
        s.rest[k] += squared * (here ? load(samples.given + i * samples.noise_stride + k * WIDTH) : VF{});
    });
    for (int k = 0; k < PARTS; ++k) {
        const VF variance = s.rest[k] / (s.weights[k] * s.weights[k]);
        store(out.data + k * WIDTH, s.first[k] + s.sum[k] / s.weights[k]);
        store(out.variance + k * WIDTH, variance);
        store(out.background + k * WIDTH, variance);
        store(out.count + k * WIDTH, s.count[k]);
    }
}

template <bool EQUAL>
FASTACK_INLINE void average_as(const CombineFrames& frames, const CombineSamples& samples, CombinePixels& out) {
    if (samples.given)
        average_given<EQUAL>(frames, samples, out);
    else if (samples.shade)
        average_modelled<EQUAL, true>(frames, samples, out);
    else
        average_modelled<EQUAL, false>(frames, samples, out);
}

/// Weighted mean of a block and its variance by the noise model. One function for whole and for clipped pixels.
__attribute__((noinline)) void average_model(const CombineFrames& frames, const CombineSamples& samples, CombinePixels& out) {
    if (frames.most_weight == 1)
        average_as<true>(frames, samples, out);
    else
        average_as<false>(frames, samples, out);
}

/// Lanes whose samples all lie within the limits of `reject_noise_rounds` about their mean.
template <class Model>
FASTACK_INLINE void quiet_lanes(const CombineSetup& setup, const CombineFrames& frames, const CombineSamples& samples,
                                const Model& noise, const CombinePixels& out, uint8_t* quiet) {
    const float kappa = setup.kappa_low < setup.kappa_high ? setup.kappa_low : setup.kappa_high;
    VF value[PARTS], level[PARTS], limit[PARTS], worst[PARTS];
    VI count[PARTS], unknown[PARTS];
    for (int k = 0; k < PARTS; ++k) {
        value[k] = load(out.data + k * WIDTH);
        level[k] = value[k] - frames.pedestal;
        memcpy(&count[k], out.count + k * WIDTH, sizeof count[k]);
        // a sample is part of the value that it is held against: less than twice its share of the weights
        const VF share = 1.0f - 2.0f * frames.most_weight / to_float(count[k]);
        limit[k] = (0.9999f * kappa * kappa / 255.0f) * share;
        worst[k] = splat(-INF);
        unknown[k] = VI{};
    }
    for (int i = 0; i < frames.n; ++i)
#pragma GCC unroll 4
        for (int k = 0; k < PARTS; ++k) {
            const VF d = load(samples.x + i * samples.stride + k * WIDTH) - value[k], variance = noise(i, k, level[k]);
            worst[k] = larger(d * d - limit[k] * variance, worst[k]);
            if (Model::given)
                unknown[k] |= variance != variance;
        }
    for (int k = 0; k < PARTS; ++k) {
        const VF most = 0.999f * kappa * kappa * load(out.variance + k * WIDTH);
        const VI settled = (count[k] == 0) | (~unknown[k] & (count[k] > 2) & (worst[k] <= most));
        const VB byte = __builtin_convertvector(settled & 1, VB);
        memcpy(quiet + k * WIDTH, &byte, sizeof byte);
    }
}

void first_look(const CombineSetup& setup, const CombineFrames& frames, const CombineSamples& samples, CombinePixels& out,
                float* sigma, uint8_t* quiet) {
    average_model(frames, samples, out);
    if (samples.given)
        quiet_lanes(setup, frames, samples, Given{samples}, out, quiet);
    else if (samples.shade)
        quiet_lanes(setup, frames, samples, Noise<true>{frames, samples}, out, quiet);
    else
        quiet_lanes(setup, frames, samples, Noise<false>{frames, samples}, out, quiet);
    for (int k = 0; k < PARTS; ++k) {
        VF typical = frames.mean_shot * positive(load(out.data + k * WIDTH) - frames.pedestal) + frames.mean_floor;
        if (samples.given) {
            typical = VF{};
            for (int i = 0; i < frames.n; ++i) {
                const VF v = load(samples.given + i * samples.noise_stride + k * WIDTH);
                typical += v == v ? v : VF{};
            }
            typical /= (float)frames.n;
        }
        VI count;
        memcpy(&count, out.count + k * WIDTH, sizeof count);
        store(sigma + k * WIDTH, root(typical / to_float(count)));
    }
}

void robust_look(const CombineFrames& frames, const float* x, bool given, float* value, float* sigma) {
    for (int at = 0; at < LANES; at += WIDTH) {
        const VI count = count_present(x + at, frames.n);
        const VF number = to_float(count), level = select(x + at, frames.n, (count - 1) >> 1, splat(NOT_A_NUMBER));
        const VF of_mean = load(sigma + at);
        const VF modelled = (frames.mean_shot * positive(level - frames.pedestal) + frames.mean_floor) / number;
        const VF variance = given ? of_mean * of_mean : modelled;
        // variance of a median over that of a mean; of one or two samples it is one of them
        store(value + at, level);
        store(sigma + at, root(variance * (count <= 2 ? number : splat(1.5707964f))));
    }
}

/// Weighted mean of what is left, and its variance by the model or, without one, from the scatter.
inline void average(const CombineFrames& frames, Part& block) {
    const int n = frames.n;
    VF reference{}, weights{};
    VI count{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(block.x, i);
        const VI here = v == v;
        reference += here ? v : VF{};
        count -= here;
    }
    reference /= to_float(count);
    // A second pass about the first mean: no rounding error of long sums, and a constant stays what it is.
    VF sum{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(block.x, i);
        const VF w = v == v ? splat(frames.weight[i]) : VF{};
        weights += w;
        sum += w * (v == v ? v - reference : VF{});
    }
    const VF value = reference + sum / weights;
    VF total{}, dark{};
    if (block.shot) {
        for (int i = 0; i < n; ++i) {
            const VF v = sample(block.x, i);
            const VF w = v == v ? splat(frames.weight[i]) : VF{};
            total += w * w * (v == v ? error_of(frames, block, i, value - frames.pedestal) : VF{});
            dark += w * w * (v == v ? variance_of(frames, block, i, VF{}) : VF{});
        }
    } else {
        for (int i = 0; i < n; ++i) {
            const VF v = sample(block.x, i);
            const VF d = v == v ? frames.weight[i] * (v - value) : VF{};
            total += d * d;
        }
        total *= to_float(count) / to_float(count - 1);
        dark = total;
    }
    store(block.out->data + block.at, value);
    store(block.out->variance + block.at, total / (weights * weights));
    store(block.out->background + block.at, dark / (weights * weights));
    store(block.out->count + block.at, count);
}

inline void middle(const CombineSetup& setup, const CombineFrames& frames, Part& block) {
    const int n = frames.n;
    const VI count = count_present(block.x, n);
    const VF value = median_of(block.x, n, count), number = to_float(count);
    VF total{}, dark{}, ratio{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(block.x, i), d = v - value;
        total += v == v ? (block.shot ? error_of(frames, block, i, value - frames.pedestal) : d * d) : VF{};
        if (block.shot)
            dark += v == v ? variance_of(frames, block, i, VF{}) : VF{};
    }
    if (!block.shot)
        dark = total *= number / (number - 1.0f);
    for (int l = 0; l < WIDTH; ++l)
        ratio[l] = setup.median_ratio[count[l]];
    store(block.out->data + block.at, value);
    store(block.out->variance + block.at, ratio * total / (number * number));
    store(block.out->background + block.at, ratio * dark / (number * number));
    store(block.out->count + block.at, count);
}

void reject(const CombineSetup& setup, const CombineFrames& frames, Part& block) {
    const int n = frames.n;
    store(block.out->present + block.at, count_present(block.x, n));
    store(block.out->low + block.at, VI{});
    store(block.out->high + block.at, VI{});
    switch (setup.reject) {
    case Reject::none: break;
    case Reject::minmax: reject_minmax(setup, block, n); break;
    case Reject::percentile: reject_percentile(setup, block, n); break;
    case Reject::sigma: reject_sigma(setup, block, n); break;
    case Reject::sigma_median: reject_sigma_median(setup, block, n); break;
    case Reject::mad: reject_mad(setup, block, n); break;
    case Reject::winsorized: reject_winsorized(setup, block, n); break;
    case Reject::linear_fit: reject_linear_fit(setup, block, n); break;
    case Reject::esd: reject_esd(setup, block, n); break;
    case Reject::noise: reject_noise(setup, frames, block); break;
    }
}

void combine_block(const CombineSetup& setup, const CombineFrames& frames, CombineBlock& block) {
    CombinePixels& out = *block.out;
    const bool modelled = block.factor && !setup.median;
    for (int at = 0; at < LANES; at += WIDTH) {
        Part part(block, at);
        reject(setup, frames, part);
        if (setup.median)
            middle(setup, frames, part);
        else if (!modelled)
            average(frames, part);
    }
    if (modelled)
        average_model(frames, {block.x, block.factor, block.shade, block.given}, out);
    memcpy(out.level, out.data, sizeof out.level);
    for (int at = 0; block.stars && !setup.median && at < LANES; at += WIDTH) {
        // a star without some of its samples has another mean profile
        const Part part(block, at);
        const VF data = load(out.data + at), level = data - mean_difference(frames, part);
        VI count;
        memcpy(&count, out.count + at, sizeof count);
        store(out.level + at, level);
        store(out.data + at, count < frames.n ? level : data);
    }
}

/// One row of the structure of the first stack, from 2 * radius + 1 rows of nx + 2 * radius pixels: curvature of
/// `rows`, range of `whole`.
void structure_row(const float* const* rows, const float* const* whole, int radius, ptrdiff_t nx, float* __restrict__ work,
                   float* __restrict__ curvature, float* __restrict__ range) {
    const ptrdiff_t wide = nx + 2 * radius;
    float* __restrict__ sum = work;
    float* __restrict__ number = work + wide;
    float* __restrict__ lowest = work + 2 * wide;
    float* __restrict__ highest = work + 3 * wide;
    for (ptrdiff_t x = 0; x < wide; ++x) {
        sum[x] = number[x] = 0;
        lowest[x] = INF;
        highest[x] = -INF;
    }
    for (int k = 0; k <= 2 * radius; ++k) {
        const float* __restrict__ row = rows[k];
        for (ptrdiff_t x = 0; x < wide; ++x) {
            const float v = row[x];
            sum[x] += v == v ? v : 0.0f;
            number[x] += v == v ? 1.0f : 0.0f;
        }
    }
    for (int k = radius - 1; k <= radius + 1; ++k) {
        const float* __restrict__ row = whole[k];
        for (ptrdiff_t x = 0; x < wide; ++x) {
            lowest[x] = row[x] < lowest[x] ? row[x] : lowest[x];
            highest[x] = row[x] > highest[x] ? row[x] : highest[x];
        }
    }
    const float* __restrict__ centre = rows[radius] + radius;
    for (ptrdiff_t x = 0; x < nx; ++x) {
        float s = 0, c = 0;
        for (int k = 0; k <= 2 * radius; ++k) {
            s += sum[x + k];
            c += number[x + k];
        }
        const float d = s / c - centre[x];
        curvature[x] = d == d ? d : 0.0f;
    }
    const float* __restrict__ lo = lowest + radius;
    const float* __restrict__ hi = highest + radius;
    for (ptrdiff_t x = 0; x < nx; ++x) {
        float a = lo[x - 1] < lo[x] ? lo[x - 1] : lo[x];
        a = lo[x + 1] < a ? lo[x + 1] : a;
        float b = hi[x - 1] > hi[x] ? hi[x - 1] : hi[x];
        b = hi[x + 1] > b ? hi[x + 1] : b;
        range[x] = b > a ? b - a : 0.0f;
    }
}

/// Structure that noise explains is none. `rows`: three rows of curvature of nx + 2 pixels; the others have nx.
void significant_row(const float* const* rows, const float* __restrict__ sigma, ptrdiff_t nx, float bend_limit,
                     float range_limit, float range_noise, float* __restrict__ curvature, float* __restrict__ bend,
                     float* __restrict__ range) {
    for (ptrdiff_t x = 0; x < nx; ++x) {
        float most = 0;
        for (int k = 0; k < 3; ++k)
            for (int j = 0; j < 3; ++j) {
                const float v = fabsf(rows[k][x + j]);
                most = v > most ? v : most;
            }
        const bool real = most > bend_limit * sigma[x];
        curvature[x] = real ? rows[1][x + 1] : 0.0f;
        bend[x] = real ? most : 0.0f;
        range[x] = range[x] > range_limit * sigma[x] ? range[x] - range_noise * sigma[x] : 0.0f;
    }
}

bool groups(const float* const* samples, const float* const* level, ptrdiff_t nx, float limit, float* __restrict__ work,
            uint8_t* __restrict__ found) {
    const float *__restrict__ a = samples[0], *__restrict__ b = samples[1], *__restrict__ c = samples[2];
    const float *__restrict__ p = level[0], *__restrict__ q = level[1], *__restrict__ r = level[2];
    for (ptrdiff_t x = 0; x < nx + 2; ++x) {
        const float u = a[x] - p[x], v = b[x] - q[x], w = c[x] - r[x];
        work[x] = (u == u ? u : 0.0f) + (v == v ? v : 0.0f) + (w == w ? w : 0.0f);
    }
    int any = 0;
    for (ptrdiff_t x = 0; x < nx; ++x) {
        const int far = fabsf(work[x] + work[x + 1] + work[x + 2]) > limit;
        found[x] = (uint8_t)far;
        any |= far;
    }
    return any;
}

void prepare_variance(const CombineFrames& frames, const uint8_t* factor, const float* shade, float* shot,
                      float* floor) {
    for (int i = 0; i < frames.n; ++i)
        for (int lane = 0; lane < LANES; lane += WIDTH) {
            const ptrdiff_t at = (ptrdiff_t)i * LANES + lane;
            const VF k = factor ? load_bytes(factor + at) * (1.0f / 255.0f) : splat(1);
            const VF shaded = shade ? load(shade + at) : splat(1);
            store(shot + at, k * frames.shot[i] * shaded);
            store(floor + at, k * frames.floor[i] * shaded * shaded);
        }
}

constexpr CombineRows combine_rows = {&first_look,    &robust_look, &take_stars, &structure_row, &significant_row,
                                      &combine_block, &groups,      &prepare_variance};

#pragma GCC diagnostic pop
