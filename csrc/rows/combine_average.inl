// Averages, their errors, and the first look at whole pixels. Included by combine.inl.

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
