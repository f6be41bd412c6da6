#pragma once
// Row functions of the stage "combine"; combine.inl defines them once for each instruction set.
//
// A block is COMBINE_LANES output pixels beside each other (or gathered) with all their samples: sample i of lane l
// stands at [i * COMBINE_LANES + l]. Lanes never look at each other, so that a pixel's bits do not depend on the
// block that it happens to lie in.

#include <cstddef>
#include <cstdint>

namespace fastack {

constexpr int COMBINE_LANES = 16;

enum class Reject : int { none, minmax, percentile, sigma, sigma_median, mad, winsorized, linear_fit, esd, noise };

/// What the user sets, and the tables that follow from it.
struct CombineSetup {
    Reject reject = Reject::none;
    bool median = false;     // combine by the median of the survivors; else by their weighted mean
    float kappa_low = 4;     // sigmas
    float kappa_high = 4;    // sigmas
    float kappa_pair = 5;    // noise: sigmas of the difference of two samples
    float kappa_grow = 2.5f; // noise: sigmas beside a rejected sample of the same frame; 0: as elsewhere
    float kappa_group = 5;   // noise: sigmas of the sum over 3x3 pixels of one frame; 0: no such test
    int grow = 0;            // noise: pixels around such a group that go with it
    int rounds = 4;
    int n_low = 1, n_high = 1;
    float percentile_low = 0.2f, percentile_high = 0.1f;
    float star_error = 0.2f;             // noise: of the predicted difference of a star's light
    float max_outliers = 0.3f;           // esd: part of the samples that may be outliers
    const float* esd_lambda = nullptr;   // [n + 1] critical value for m remaining samples
    const float* median_ratio = nullptr; // [n + 1] variance of the median over that of the mean
};

/// Constants of the frames, arrays of n. Variance of a sample = shot * max(Y - pedestal + sky, 0) + floor.
struct CombineFrames {
    int n = 0;
    float pedestal = 0;
    float mean_shot = 0;  // mean of `shot`
    float mean_floor = 0; // mean of the variance at the pedestal
    const float* weight = nullptr;
    const float* shot = nullptr;      // s |J| / g
    const float* sky = nullptr;       // b s |J|
    const float* floor = nullptr;     // (s |J| r / g)^2
    const float* seeing = nullptr;    // of the curvature map: what this frame's PSF adds to the stack's
    const float* tolerance = nullptr; // of the curvature's local maximum: how far that may be wrong
    const float* jitter = nullptr;    // of the local range: registration and undersampling
    // A star's light in frame i differs from that in the mean of all frames by sum_k share[k * n + i] * stars[k]:
    int components = 0;
    const float* share = nullptr;
    // What follows from them for weighted sums of variances in units of the 8-bit factor:
    const float* light = nullptr; // weight^2 shot / 255
    const float* rest = nullptr;  // weight^2 floor / 255
    const float* ground = nullptr; // light * sky + rest
    float least_sky = 0;
    float most_weight = 0; // over the least; 1: all weights are 1
};

/// Results of a block.
struct CombinePixels {
    float data[COMBINE_LANES];
    float variance[COMBINE_LANES];
    float background[COMBINE_LANES]; // variance where there is no signal above the pedestal
    float level[COMBINE_LANES];      // mean of the survivors as the mean profile of the stars has it
    int32_t present[COMBINE_LANES];
    int32_t count[COMBINE_LANES];
    int32_t low[COMBINE_LANES];
    int32_t high[COMBINE_LANES];
};

struct CombineBlock {
    float* x = nullptr;              // samples; NaN: missing, and after `reject` also the rejected ones
    float* work = nullptr;           // as large as three times x
    const float* shot = nullptr;     // per sample, or nullptr: no variance is known
    const float* floor = nullptr;    // per sample
    const uint8_t* factor = nullptr; // per sample (noise): the variance is that of the constants times this / 255
    const float* shade = nullptr;    // per sample, or nullptr: 1
    const float* given = nullptr;    // per sample: variance in place of all that
    const uint8_t* near = nullptr;   // per sample, in the second look (with `shift`): 1 beside a rejected one, 2 out
    const float* shift = nullptr;    // per sample: smooth excess of its frame around it
    const float* start = nullptr;    // [lanes] robust first value (noise)
    const float* curvature = nullptr; // [lanes] blurred minus sharp stack
    const float* bend = nullptr;     // [lanes] local maximum of its absolute value
    const float* range = nullptr;    // [lanes] local range of the stack
    const float* stars = nullptr;    // [components][lanes] light of known stars; nullptr: none is near
    CombinePixels* out = nullptr;
};

/// A block's samples where they lie: those of one frame beside each other, the next frame's a stride further on.
struct CombineSamples {
    const float* x = nullptr;
    const uint8_t* factor = nullptr; // this and the next two as in CombineBlock
    const float* shade = nullptr;
    const float* given = nullptr;
    ptrdiff_t stride = COMBINE_LANES;
    ptrdiff_t noise_stride = COMBINE_LANES;
    const float* next = nullptr; // samples and factors that are wanted soon
    const uint8_t* next_factor = nullptr;
    ptrdiff_t next_stride = 0; // of the former, the latter's is noise_stride
};

struct CombineRows {
    /// Average all samples of a block (noise), with the sigma of that mean, and mark the lanes where all samples lie
    /// within the limits of `combine` about it: no sample can be an outlier there, structure aside.
    void (*first_look)(const CombineSetup&, const CombineFrames&, const CombineSamples&, CombinePixels&, float* sigma,
                       uint8_t* quiet);
    /// For other lanes: a robust first value, the sample of rank (count - 1) / 2, counted from 0, and its sigma in place
    /// of that of the mean. `given`: whether the samples' variances are.
    void (*robust_look)(const CombineFrames&, const float* x, bool given, float* value, float* sigma);
    /// A block of samples without what known stars have more in each frame than in their mean.
    void (*take_stars)(const CombineFrames&, const float* stars, const float* from, ptrdiff_t stride, float* to);
    /// Blurred minus sharp (a box of 2 * radius + 1) of one row of an image, and range over 3x3 of another.
    void (*structure_row)(const float* const* rows, const float* const* whole, int radius, ptrdiff_t nx, float* work, float* curvature,
                          float* range);
    /// Zero where noise explains it; `bend` is the largest |curvature| over 3x3.
    void (*significant_row)(const float* const* rows, const float* sigma, ptrdiff_t nx, float bend_limit,
                            float range_limit, float range_noise, float* curvature, float* bend, float* range);
    /// Reject, then average. Fills everything from `data` on.
    void (*combine)(const CombineSetup&, const CombineFrames&, CombineBlock&);
    /// Mark the pixels from whose 3x3 surroundings the sum of samples less level is more than `limit` away from 0;
    /// whether there are any. Rows of nx + 2 pixels; a missing one counts as the level.
    bool (*groups)(const float* const* samples, const float* const* level, ptrdiff_t nx, float limit, float* work,
                   uint8_t* found);
    /// Per-sample variance coefficients of a block from 8-bit factors (nullptr: 255) and shades (nullptr: 1).
    void (*prepare)(const CombineFrames&, const uint8_t* factor, const float* shade, float* shot, float* floor);
};

} // namespace fastack
