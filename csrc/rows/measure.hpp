#pragma once
// Row functions of the stage "measure"; measure.inl defines them once for each instruction set.

#include <cstddef>
#include <cstdint>

namespace fastack {

/// Window lists are padded to a multiple of this, whatever the width of a vector.
constexpr std::ptrdiff_t measure_pad = 16;
constexpr float measure_padding = 1e30f; ///< variance of what pads the lists

/// Pixels of one measuring window, missing ones left out, padded with pixels of infinite variance. The arrays
/// are aligned to 64 byte.
struct MeasurePixels {
    const float* x; // relative to the window's middle pixel
    const float* y;
    const float* value;    // above the sky's first guess
    const float* variance; // of the background
    std::ptrdiff_t n;      // with padding
};

/// Elliptical Moffat profile  sky + peak * (1 + k (a dx^2 + 2 b dx dy + c dy^2))^(-1/eta),  k = 2^eta - 1, so
/// that a, b, c are the inverse squared half widths at half maximum for any exponent beta = 1/eta.
struct MeasureMoffat {
    float x, y, peak, sky, a, b, c, eta;
    float beta, k, dk; // 1/eta, 2^eta - 1 and its derivative
    float node;        // half distance of the four points whose mean is a pixel's value; 0: its middle alone
    float photons;     // variance per unit of the profile above the sky: 1/gain, or 0
    float mismatch;    // relative error of the profile itself
};

constexpr int measure_shape = 8; // x, y, peak, sky, a, b, c, eta
constexpr int measure_width = 5; // x, y, peak, sky, log width

/// Sums of the normal equations: upper triangle by rows, gradient, weighted square of the residuals.
constexpr int measure_sums(int parameters) {
    return parameters * (parameters + 1) / 2 + parameters + 1;
}

struct MeasureRows {
    /// Pixels of a round window above the sky, row by row from -reach to reach, half[row] on either side of the middle;
    /// false where one is not finite or at the saturation level.
    bool (*window)(const float* middle, std::ptrdiff_t stride, const int* half, std::ptrdiff_t reach, float sky,
                   float saturation, float* value);
    /// Residuals, derivatives (measure_shape lists of n) and the weights that the model implies; returns the
    /// residuals' sum of squares under the weights given.
    double (*shape)(const MeasurePixels&, const MeasureMoffat&, const float* weight, float* derivatives,
                    float* residual, float* model_weight);
    /// Normal equations of what `shape` left.
    void (*shape_sums)(std::ptrdiff_t n, const float* derivatives, const float* residual, const float* weight,
                       double* sums);
    /// Normal equations of position, peak, sky and width at a fixed shape, under the weights of the model.
    void (*width_sums)(const MeasurePixels&, const MeasureMoffat&, double* sums);
    /// Take a star away: value -= profile (its sky is ignored).
    void (*subtract)(const MeasurePixels&, const MeasureMoffat&, float* value);
    /// The highest value of the pixels closer to (x, y) than 1.5; minus infinity where there is none.
    float (*top)(const MeasurePixels&, float x, float y);
    /// Sum of log(weight * variance).
    double (*log_ratio)(const MeasurePixels&, const float* weight);
};

} // namespace fastack
