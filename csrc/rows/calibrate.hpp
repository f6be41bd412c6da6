#pragma once
// Row functions of the stage "calibrate"; calibrate.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

/// One row of stored pixels and what turns it into calibrated ones:
/// `out = (raw * bscale + bzero - level - bias - dark * dark_scale) * inv_flat`.
struct CalibrateRow {
    const unsigned char* raw; ///< big-endian pixels as the file holds them, of any alignment
    std::ptrdiff_t n;         ///< pixels
    double bscale;
    double bzero;
    double level;               ///< overscan level of this row
    const std::int64_t* blank;  ///< integer that marks a missing pixel; nullptr: none
    const float* bias;          ///< nullptr: none
    const float* dark;          ///< nullptr: none
    float dark_scale;
    const float* inv_flat; ///< nullptr: none
    double saturation;     ///< scaled raw value from which a pixel counts as saturated; inf: none
    float* out;
};

/// Writes `out` and returns the number of saturated pixels.
using CalibrateFunction = std::ptrdiff_t (*)(const CalibrateRow&);

struct CalibrateRows {
    // Single precision, exact where bscale is 1 and bzero an integer below 2^23 (f32: bzero 0) and without blank.
    CalibrateFunction u8, s16, f32;
    // Double precision up to the last rounding, for everything else.
    CalibrateFunction u8_exact, s16_exact, s32_exact, s64_exact, f32_exact, f64_exact;
};

} // namespace fastack
