#pragma once
// Row functions of the stage "detect"; detect.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

constexpr int largest_radius = 16;             ///< of the matched filter, pixel
constexpr std::ptrdiff_t threshold_block = 64; ///< pixels that share one count

struct DetectRows {
    /// out = (x - level) * scale, where level blends four mesh rows by weight[0..3] and scale blends two by
    /// weight[4..5]; 0 where x is missing. Returns the number of missing pixels.
    int (*whiten)(const float* x, const float* const* level, const float* const* scale, const float* weight,
                  std::ptrdiff_t n, float* out);
    /// 1 where x is there, 0 where it is missing.
    void (*present)(const float* x, std::ptrdiff_t n, float* out);
    /// Symmetric filters of radius r: out[x] = sum of tap[|j|] * in[x + j]; `filter_x[r]` reads r values on
    /// either side of in[0..n), `filter_y[r]` reads 2r + 1 rows.
    void (*filter_x[largest_radius + 1])(const float* in, const float* tap, std::ptrdiff_t n, float* out);
    void (*filter_y[largest_radius + 1])(const float* const* in, const float* tap, std::ptrdiff_t n,
                                         float* out);
    /// In each block of `threshold_block` pixels the number of those above the threshold, 255 at most.
    void (*count_above)(const float* x, std::ptrdiff_t n, float threshold, std::uint8_t* count);
    /// 1 where a pixel exceeds the threshold and its eight neighbours, 0 elsewhere. Of equal neighbours the last one
    /// counts. The rows are readable one value to either side.
    void (*peaks)(const float* above, const float* here, const float* below, std::ptrdiff_t n, float threshold,
                  std::uint8_t* peak);
};

} // namespace fastack
