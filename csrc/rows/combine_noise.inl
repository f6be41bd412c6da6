// The rejection by the noise model and the structure of the stack. Included by combine.inl.

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
