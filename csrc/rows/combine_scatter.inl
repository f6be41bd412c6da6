// Rejections that look at the samples alone: their order and their own scatter. Included by combine.inl.

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
