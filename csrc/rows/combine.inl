// Included inside the namespace of one instruction set (see level.inl). No STL here: an inline function of the
// standard library that is compiled for AVX-512 may be the copy that the linker keeps for all.
//
// All functions work on one block (rows/combine.hpp), on as many of its pixels at a time as a register holds: GCC 12
// goes through wider vectors lane by lane. Loops run over the frames. Comparisons with NaN are false, which is how
// missing samples drop out.

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wpsabi" // vectors by value: everything below is inlined

#include "rows/combine_vectors.inl"

#include "rows/combine_scatter.inl"

#include "rows/combine_noise.inl"

#include "rows/combine_average.inl"

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
