// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of the
// standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.
//
// All functions work on one block (rows/combine.hpp): vectors of 16 pixels, loops over the frames. Comparisons
// with NaN are false, which is how missing samples drop out.

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi" // vectors by value: everything below is inlined

#define FASTACK_INLINE inline __attribute__((always_inline))

constexpr int LANES = COMBINE_LANES;
typedef float VF __attribute__((vector_size(4 * COMBINE_LANES)));
typedef int32_t VI __attribute__((vector_size(4 * COMBINE_LANES)));
typedef uint8_t VB __attribute__((vector_size(COMBINE_LANES)));
typedef uint16_t VH __attribute__((vector_size(2 * COMBINE_LANES)));

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
// In steps of two: beyond that GCC 12 goes lane by lane.
FASTACK_INLINE VI widen(VB a) { return __builtin_convertvector(__builtin_convertvector(a, VH), VI); }
FASTACK_INLINE VF to_float(VI a) { return __builtin_convertvector(a, VF); }
FASTACK_INLINE VF root(VF a) {
    for (int l = 0; l < LANES; ++l)
        a[l] = sqrtf(a[l]);
    return a;
}
FASTACK_INLINE bool any(VI mask) {
    int64_t part[sizeof mask / 8];
    memcpy(part, &mask, sizeof mask);
    int64_t all = 0;
    for (unsigned k = 0; k < sizeof mask / 8; ++k)
        all |= part[k];
    return all != 0;
}

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

/// The sample of rank k (from 0) among the present ones. Exact: a bracket of two sample values that hold rank k
/// between them shrinks with every count, until it is one value. Pivots follow the counts, every third one halves.
inline VF select(const float* x, int n, VI k) {
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
    VF pivot = sum / to_float(above);
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
        hi = left ? under : hi;
        above = left ? count : above;
        lo = right ? over : lo;
        below = right ? count : below;
        const VF part = (to_float(k - below) + 0.5f) / to_float(above - below);
        pivot = lo + (hi - lo) * (pass % 3 ? part : splat(0.5f));
    }
    return lo <= hi ? lo : splat(NOT_A_NUMBER);
}

/// Median of the present samples; of an even number the mean of the middle two.
inline VF median_of(const float* x, int n, VI count) {
    const VF lower = select(x, n, (count - 1) >> 1);
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
FASTACK_INLINE void keep_between(CombineBlock& block, int n, VF lo, VF hi) {
    VI low{}, high{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(block.x, i);
        const VI under = v < lo, over = v > hi;
        low -= under;
        high -= over;
        store(block.x + (ptrdiff_t)i * LANES, under | over ? splat(NOT_A_NUMBER) : v);
    }
    store(block.low, low);
    store(block.high, high);
}

/// Samples within [lo, hi], the others NaN.
FASTACK_INLINE void copy_between(const float* x, int n, VF lo, VF hi, float* out) {
    for (int i = 0; i < n; ++i) {
        const VF v = sample(x, i);
        store(out + (ptrdiff_t)i * LANES, (v >= lo) & (v <= hi) ? v : splat(NOT_A_NUMBER));
    }
}

/// Clip at centre -+ kappa * width until nothing changes; what is out stays out.
template <class Estimate>
FASTACK_INLINE void clip_rounds(const CombineSetup& setup, CombineBlock& block, int n, Estimate estimate) {
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

inline void reject_sigma(const CombineSetup& setup, CombineBlock& block, int n) {
    VF reference = sample(block.x, 0);
    reference = reference == reference ? reference : VF{};
    clip_rounds(setup, block, n, [&](VF lo, VF hi, VF& centre, VF& width) {
        const Moments m = moments(block.x, n, lo, hi, reference);
        centre = m.mean;
        width = m.sigma;
        reference = centre == centre ? centre : reference;
    });
}

inline void reject_sigma_median(const CombineSetup& setup, CombineBlock& block, int n) {
    clip_rounds(setup, block, n, [&](VF lo, VF hi, VF& centre, VF& width) {
        copy_between(block.x, n, lo, hi, block.work);
        centre = median_of(block.work, n, count_present(block.work, n));
        width = moments(block.work, n, lo, hi, centre).sigma;
    });
}

inline void reject_mad(const CombineSetup& setup, CombineBlock& block, int n) {
    clip_rounds(setup, block, n, [&](VF lo, VF hi, VF& centre, VF& width) {
        copy_between(block.x, n, lo, hi, block.work);
        const VI count = count_present(block.work, n);
        centre = median_of(block.work, n, count);
        for (int i = 0; i < n; ++i)
            store(block.work + (ptrdiff_t)i * LANES, magnitude(sample(block.work, i) - centre));
        width = 1.4826022f * median_of(block.work, n, count);
    });
}

/// Huber's winsorising: sigma of the samples drawn in to median -+ 1.5 sigma, times 1.134, ten times over.
inline void reject_winsorized(const CombineSetup& setup, CombineBlock& block, int n) {
    clip_rounds(setup, block, n, [&](VF lo, VF hi, VF& centre, VF& width) {
        copy_between(block.x, n, lo, hi, block.work);
        centre = median_of(block.work, n, count_present(block.work, n));
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

inline void reject_percentile(const CombineSetup& setup, CombineBlock& block, int n) {
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
inline void drop_ends(CombineBlock& block, int n, const float* sorted, VI count, VI low, VI high) {
    VF lo, hi;
    for (int l = 0; l < LANES; ++l) {
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
    store(block.low, low);
    store(block.high, high);
}

inline void reject_minmax(const CombineSetup& setup, CombineBlock& block, int n) {
    const VI count = count_present(block.x, n);
    const VI enough = count > setup.n_low + setup.n_high;
    sort_lanes(block.x, n, block.work);
    drop_ends(block, n, block.work, count, enough & setup.n_low, enough & setup.n_high);
}

/// A straight line through the sorted samples; what lies off it at either end goes, sigma being the mean distance.
inline void reject_linear_fit(const CombineSetup& setup, CombineBlock& block, int n) {
    const VI count = count_present(block.x, n);
    const float* sorted = block.work;
    sort_lanes(block.x, n, block.work);
    VI first{}, last = count - 1;
    for (int round = 0; round < setup.rounds; ++round) {
        const VI left = last - first + 1;
        const VF number = to_float(left), middle = 0.5f * to_float(last - first);
        VF reference{};
        for (int l = 0; l < LANES; ++l)
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
inline void reject_esd(const CombineSetup& setup, CombineBlock& block, int n) {
    const VI count = count_present(block.x, n);
    sort_lanes(block.x, n, block.work);
    VI low{}, high{};
    for (int l = 0; l < LANES; ++l) {
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

FASTACK_INLINE VF variance_of(const CombineFrames& frames, const CombineBlock& block, int i, VF level) {
    return sample(block.shot, i) * positive(level + frames.sky[i]) + sample(block.floor, i);
}

/// Variance of a sample for the error of an average. Cut at no light, as in the rejection, an average that its own noise
/// takes below that would have too large a variance in the mean: only a quarter of the read noise is taken for sure.
FASTACK_INLINE VF with_read_noise(VF light, VF read) { return larger(light + read, 0.25f * read); }

FASTACK_INLINE VF error_of(const CombineFrames& frames, const CombineBlock& block, int i, VF level) {
    return with_read_noise(sample(block.shot, i) * (level + frames.sky[i]), sample(block.floor, i));
}

FASTACK_INLINE VI near_of(const CombineBlock& block, int i) {
    VB near;
    memcpy(&near, block.near + (ptrdiff_t)i * LANES, sizeof near);
    return widen(near);
}

/// What known stars have more in frame i than in the mean of all frames.
FASTACK_INLINE VF star_difference(const CombineFrames& frames, const float* stars, int i) {
    VF d{};
    for (int k = 0; k < frames.components; ++k)
        d += frames.share[(ptrdiff_t)k * frames.n + i] * load(stars + (ptrdiff_t)k * LANES);
    return d;
}

void take_stars(const CombineFrames& frames, const float* stars, float* x) {
    for (int i = 0; i < frames.n; ++i)
        store(x + (ptrdiff_t)i * LANES, sample(x, i) - star_difference(frames, stars, i));
}

/// Weighted mean of that over the samples that are there.
inline VF mean_difference(const CombineFrames& frames, const CombineBlock& block) {
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
FASTACK_INLINE void reject_noise_rounds(const CombineSetup& setup, const CombineFrames& frames, CombineBlock& block) {
    const int n = frames.n;
    float* const x = block.work;                          // samples brought to the stack's seeing
    float* const kept = block.work + (ptrdiff_t)n * LANES; // weight of the samples kept, 0 of the others
    const VF curvature = load(block.curvature), bend = load(block.bend), range = load(block.range);
    const bool structure = block.stars || any((bend > 0.0f) | (range > 0.0f));
    const auto allowance_of = [&](int i, VF& allowance) {
        allowance = frames.tolerance[i] * bend + frames.jitter[i] * range;
        if (block.stars)
            allowance += setup.star_error * magnitude(star_difference(frames, block.stars, i));
    };
    VF start = load(block.start);
    VI count{};
    for (int i = 0; i < n; ++i) {
        VF v = sample(block.x, i);
        if (structure)
            v -= frames.seeing[i] * curvature;
        if (block.stars)
            v -= star_difference(frames, block.stars, i);
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
        start = select(kept, n, (sure - 1) >> 1);
    }
    VF slack{}; // how far the value itself may be wrong
    if (structure) {
        if (!SECOND)
            start = select(x, n, (count - 1) >> 1);
        for (int i = 0; i < n; ++i) {
            VF allowance;
            allowance_of(i, allowance);
            slack = sample(x, i) == start ? larger(allowance, slack) : slack;
        }
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
                allowance_of(i, allowance);
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
            store(kept + (ptrdiff_t)i * LANES, weight);
            changed |= (weight > 0.0f) != (before > 0.0f);
            loose += weight * allowance;
            sum += weight * (keep ? v - start : VF{});
            weights += weight;
            variance += weight * weight * (keep ? noise : VF{});
        }
        // A lane that has lost its last sample falls back to the one that it started from, and rests.
        const VI lost = (weights == 0.0f) & (count > 0);
        if (any(lost))
            for (int i = 0; i < n; ++i) {
                const VF only = sample(x, i) == start ? splat(frames.weight[i]) : VF{};
                store(kept + (ptrdiff_t)i * LANES, lost ? only : sample(kept, i));
            }
        changed &= ~lost;
        if (!any(changed))
            break;
        // A lane at rest must not move again while others go on.
        value = changed ? start + sum / weights : value;
        value_variance = changed ? variance / (weights * weights) : value_variance;
        twice = changed ? 2.0f / weights : twice;
        own = changed ? splat(1) : own;
        slack = changed ? loose / weights : slack;
    }

    VI low{}, high{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(x, i);
        const VI out = (sample(kept, i) == 0.0f) & (v == v);
        low -= out & (v < value);
        high -= out & (v >= value);
        store(block.x + (ptrdiff_t)i * LANES, out ? splat(NOT_A_NUMBER) : sample(block.x, i));
    }
    store(block.low, low);
    store(block.high, high);
}

inline void reject_noise(const CombineSetup& setup, const CombineFrames& frames, CombineBlock& block) {
    if (block.near)
        reject_noise_rounds<true>(setup, frames, block);
    else
        reject_noise_rounds<false>(setup, frames, block);
}

FASTACK_INLINE VF factor_of(const CombineBlock& block, int i) {
    VB byte;
    memcpy(&byte, block.factor + (ptrdiff_t)i * LANES, sizeof byte);
    return to_float(widen(byte));
}

/// Variance of a sample in units of 1/255.
template <bool SHADE, bool GIVEN>
FASTACK_INLINE void noise_of(const CombineFrames& frames, const CombineBlock& block, int i, VF level, VF& noise) {
    if (GIVEN) {
        noise = 255.0f * sample(block.given, i);
        return;
    }
    VF light = frames.shot[i] * positive(level + frames.sky[i]), read = splat(frames.floor[i]);
    if (SHADE) {
        const VF f = sample(block.shade, i);
        light *= f;
        read *= f * f;
    }
    noise = (light + read) * factor_of(block, i);
}

/// Weighted mean about the first sample, so that a constant stays what it is, and its variance.
template <bool SHADE, bool GIVEN>
FASTACK_INLINE void average_as(const CombineFrames& frames, CombineBlock& block) {
    const int n = frames.n;
    const bool dark_sky = !GIVEN && frames.least_sky < 0;
    VF first = sample(block.x, 0);
    for (int i = 1; i < n && any(first != first); ++i)
        first = first == first ? first : sample(block.x, i);
    VF sum{}, weights{}, light{}, rest{}, shadow{};
    VI count{};
    for (int i = 0; i < n; ++i) {
        const VF v = sample(block.x, i);
        const VI here = v == v;
        if (block.next) // too many frames for the processor to foresee
            __builtin_prefetch(block.next + i * block.next_stride);
        const VF w = here ? splat(frames.weight[i]) : VF{};
        sum += w * (here ? v - first : VF{});
        weights += w;
        count -= here;
        if (GIVEN) {
            rest += w * w * (here ? sample(block.given, i) : VF{});
            continue;
        }
        VF k = here ? factor_of(block, i) : VF{}, read = splat(frames.rest[i]);
        if (SHADE) {
            const VF f = sample(block.shade, i);
            k *= f;
            read *= f;
        }
        const VF seen = frames.light[i] * k;
        light += seen;
        rest += frames.sky[i] * seen + read * k;
        if (dark_sky)
            shadow += (frames.sky[i] > 0 ? frames.sky[i] : 0) * seen + read * k;
    }
    const VF value = first + sum / weights, level = value - frames.pedestal;
    VF total = level * light + rest;
    const VI below = level + frames.least_sky < 0.0f; // some frame's variance may have to be cut
    if (!GIVEN && any(below)) {
        VF exact{};
        for (int i = 0; i < n; ++i) {
            const VF v = sample(block.x, i);
            VF k = v == v ? factor_of(block, i) : VF{}, read = splat(frames.rest[i]);
            if (SHADE) {
                const VF f = sample(block.shade, i);
                k *= f;
                read *= f;
            }
            exact += k * with_read_noise(frames.light[i] * (level + frames.sky[i]), read);
        }
        total = below ? exact : total;
    }
    store(block.data, value);
    store(block.variance, total / (weights * weights));
    store(block.background, (dark_sky ? shadow : rest) / (weights * weights));
    store(block.count, count);
}

/// One function for whole and for clipped blocks, so that a pixel's bits do not depend on what else its block holds.
__attribute__((noinline)) void average_model(const CombineFrames& frames, CombineBlock& block) {
    if (block.given)
        average_as<false, true>(frames, block);
    else if (block.shade)
        average_as<true, false>(frames, block);
    else
        average_as<false, false>(frames, block);
}

/// Lanes whose samples all lie within the limits of `reject_noise_rounds` about their mean.
template <bool SHADE, bool GIVEN>
FASTACK_INLINE void quiet_lanes(const CombineSetup& setup, const CombineFrames& frames, const CombineBlock& block,
                                VI count, VI& quiet) {
    const VF value = load(block.data), level = value - frames.pedestal;
    const float kappa = setup.kappa_low < setup.kappa_high ? setup.kappa_low : setup.kappa_high;
    // a sample is part of the value that it is held against: less than twice its share of the weights
    const VF share = 1.0f - 2.0f * frames.most_weight / to_float(count);
    const VF limit = (0.9999f * kappa * kappa / 255.0f) * share;
    VF worst = splat(-INF);
    VI unknown{};
    for (int i = 0; i < frames.n; ++i) {
        const VF d = sample(block.x, i) - value;
        VF noise;
        noise_of<SHADE, GIVEN>(frames, block, i, level, noise);
        worst = larger(d * d - limit * noise, worst);
        if (GIVEN)
            unknown |= noise != noise;
    }
    quiet = ~unknown & ((count == 0) | ((count > 2) & (worst <= 0.999f * kappa * kappa * load(block.variance))));
}

void first_look(const CombineSetup& setup, const CombineFrames& frames, CombineBlock& block, float* value, float* sigma,
                uint8_t* quiet_lane) {
    const int n = frames.n;
    average_model(frames, block);
    VI count;
    memcpy(&count, block.count, sizeof count);
    VI quiet;
    if (block.given)
        quiet_lanes<false, true>(setup, frames, block, count, quiet);
    else if (block.shade)
        quiet_lanes<true, false>(setup, frames, block, count, quiet);
    else
        quiet_lanes<false, false>(setup, frames, block, count, quiet);
    VF level = load(block.data);
    if (any(~quiet))
        level = quiet ? level : select(block.x, n, (count - 1) >> 1);
    VF typical = frames.mean_shot * positive(level - frames.pedestal) + frames.mean_floor;
    if (block.given) {
        typical = VF{};
        for (int i = 0; i < n; ++i) {
            const VF v = sample(block.given, i);
            typical += v == v ? v : VF{};
        }
        typical /= (float)n;
    }
    const VF median = quiet ? splat(1) : splat(1.5707964f); // variance of a median over that of a mean
    store(value, level);
    store(sigma, root(typical * (count <= 2 ? splat(1) : median / to_float(count))));
    store(block.level, load(block.data));
    store(block.present, count);
    store(block.low, VI{});
    store(block.high, VI{});
    const VB byte = __builtin_convertvector(quiet & 1, VB);
    memcpy(quiet_lane, &byte, sizeof byte);
}

/// Weighted mean of what is left, and its variance by the model or, without one, from the scatter.
inline void average(const CombineFrames& frames, CombineBlock& block) {
    if (block.factor)
        return average_model(frames, block);
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
    store(block.data, value);
    store(block.variance, total / (weights * weights));
    store(block.background, dark / (weights * weights));
    store(block.count, count);
}

inline void middle(const CombineSetup& setup, const CombineFrames& frames, CombineBlock& block) {
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
    for (int l = 0; l < LANES; ++l)
        ratio[l] = setup.median_ratio[count[l]];
    store(block.data, value);
    store(block.variance, ratio * total / (number * number));
    store(block.background, ratio * dark / (number * number));
    store(block.count, count);
}

void combine_block(const CombineSetup& setup, const CombineFrames& frames, CombineBlock& block) {
    const int n = frames.n;
    store(block.present, count_present(block.x, n));
    store(block.low, VI{});
    store(block.high, VI{});
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
    if (setup.median)
        middle(setup, frames, block);
    else
        average(frames, block);
    store(block.level, load(block.data));
    if (block.stars && !setup.median) { // a star without some of its samples has another mean profile
        VI count;
        memcpy(&count, block.count, sizeof count);
        store(block.level, load(block.data) - mean_difference(frames, block));
        store(block.data, count < n ? load(block.level) : load(block.data));
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
    for (int i = 0; i < frames.n; ++i) {
        const ptrdiff_t at = (ptrdiff_t)i * LANES;
        VF k = splat(1);
        if (factor) {
            VB byte;
            memcpy(&byte, factor + at, sizeof byte);
            k = to_float(widen(byte)) * (1.0f / 255.0f);
        }
        const VF shaded = shade ? load(shade + at) : splat(1);
        store(shot + at, k * frames.shot[i] * shaded);
        store(floor + at, k * frames.floor[i] * shaded * shaded);
    }
}

constexpr CombineRows combine_rows = {&first_look,    &take_stars, &structure_row,   &significant_row,
                                      &combine_block, &groups,     &prepare_variance};

#pragma GCC diagnostic pop
