#pragma once
// Row functions of the stage "detect"; detect.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

constexpr int largest_radius = 16;             ///< of the matched filter, pixel
constexpr std::ptrdiff_t threshold_block = 64; ///< pixels that share one count
constexpr int filter_rows = 4;                 ///< rows that `filter_y` makes at once

constexpr int sharp_lanes = 16; ///< pixels that `sharp` tests at once

constexpr float psf_mismatch = 0.1f; ///< of a real profile's core against a Gaussian

/// Pixels that are tested against the point-spread function, with those about each that the test looks at.
struct SharpPixels {
    static constexpr int around = 13;
    static constexpr signed char dx[around] = {0, -1, 1, 0, 0, -2, 2, 0, 0, -1, 1, -1, 1};
    static constexpr signed char dy[around] = {0, 0, 0, -1, 1, 0, 0, -2, 2, -1, -1, 1, 1};

    alignas(64) float pixel[around][sharp_lanes]; ///< NaN: missing
    alignas(64) float sky[sharp_lanes];
    alignas(64) float noise[sharp_lanes];
    alignas(64) float shot[sharp_lanes];  ///< variance a unit of light above the sky, all in units of the noise
    alignas(64) float limit[sharp_lanes]; ///< sigma
};

struct DetectRows {
    /// Number of missing pixels of a row; in each block of `threshold_block` pixels the number of those above the
    /// block's bound.
    int (*scan)(const float* x, std::ptrdiff_t n, const float* bound, std::uint8_t* above);
    /// Puts the pixels that are there in their places in `out`, and 1 or 0 (missing) into `present`.
    void (*fill)(const float* x, std::ptrdiff_t n, float* out, float* present);
    /// Symmetric filters of radius r. `filter_x[r]`: out[x] = sum of tap[|j|] * in[x + j], with r values on either side
    /// of in[0..n), and in each block the number of those above the block's bound.
    /// `filter_y[r]`: `filter_rows` rows, `stride` apart, of start + sum of tap[|j|] * in[r + row + j][x]; asks the
    /// cache for the rows `next`.
    void (*filter_x[largest_radius + 1])(const float* in, const float* tap, std::ptrdiff_t n, const float* bound,
                                         float* out, std::uint8_t* above);
    void (*filter_y[largest_radius + 1])(const float* const* in, const float* tap, float start, std::ptrdiff_t n,
                                         float* out, std::ptrdiff_t stride, const float* const* next);
    /// Filtered pixels of which a part only had a weight, the rest of them sky: what is above the sky, zero = (level -
    /// pedestal) * sum, is divided by the root of the weight; minus infinity below the least weight. Counts anew
    /// what is above the bounds.
    void (*normalise)(const float* weight, const float* level, float pedestal, float sum, float least, std::ptrdiff_t n,
                      const float* bound, float* out, std::uint8_t* above);
    /// Number and places of the pixels that exceed the threshold and their eight neighbours, of a block of
    /// `threshold_block` at most. Of equal neighbours the last one counts. The rows are readable one value to either
    /// side.
    int (*peaks)(const float* above, const float* here, const float* below, std::ptrdiff_t n, float threshold,
                 std::uint8_t* places);
    /// Number and places of the pixels of a block that exceed the threshold.
    int (*mark)(const float* x, std::ptrdiff_t n, float threshold, std::uint8_t* places);
    /// Bit i of bits[j]: whether x[j * stride + i] exceeds the threshold; 32 columns at most.
    void (*lit)(const float* x, std::ptrdiff_t stride, std::ptrdiff_t columns, std::ptrdiff_t rows, float threshold,
                std::uint32_t* bits);
    /// 1 for each of the first n pixels that no point-spread function can make whose light falls to `next` from a pixel
    /// to the one beside it, or less; 0 for the others.
    void (*sharp)(const SharpPixels& pixels, int n, float next, std::uint8_t* hit);
};

} // namespace fastack
