#pragma once
// Reject outliers and average N registered images, one window of the output at a time.

#include "fastack/view.hpp"
#include "rows/combine.hpp"

namespace fastack {

/// Stars whose light is known to differ between the frames, and their profiles: the weighted mean of all frames', and
/// components whose multiples `share` make up each frame's difference from it.
struct CombineStars {
    Image<const double> xy;      // [m][2] positions in pixels of the output
    Span<const float> flux;      // [m]
    Span<const float> radius;    // [m] pixels beyond which their light does not matter
    Image<const float> profile;  // [1 + components][bins] light per pixel of a star of flux 1, in steps of `step`
    Span<const int32_t> order;   // [components] m: times cos(m angle), where negative sin(-m angle); 0, 2 or 4
    float step = 1;              // pixels
    Image<const float> share;    // [components][n]
};

/// What `combine` reads. Only the window is combined; pixels around it serve as neighbours. A result depends on the
/// pixels up to `combine_reach` around it and on nothing else, so that windows may be laid at will.
struct CombineInput {
    Panels<const float> cube;      // samples on the scale of the output; NaN: missing
    Panels<const uint8_t> factor;  // 255 * sum of the squared resampling coefficients, or empty: 255
    Panels<const float> variance;  // of each sample, in place of the frames' constants; or empty
    Stack<const float> shade;      // 1/flat on blocks of 16x16 output pixels, or empty: 1
    std::ptrdiff_t shade_y = 0;    // output block that shade (0, 0) stands for
    std::ptrdiff_t shade_x = 0;
    std::ptrdiff_t y = 0;          // output pixel that cube (0, 0) stands for
    std::ptrdiff_t x = 0;
    std::ptrdiff_t y0 = 0, y1 = 0; // the window, in pixels of the cube
    std::ptrdiff_t x0 = 0, x1 = 0;
    CombineStars stars;
    int radius = 2;                // of the box that measures curvature: 1, 2 or 3
};

/// Images of the window's size.
struct CombineOutput {
    Image<float> data;
    Image<float> variance;
    Image<float> background; // variance where there is no signal
    Image<uint16_t> count;   // samples kept
    Image<uint16_t> low;     // samples rejected as too low
    Image<uint16_t> high;
};

/// Distance of the patches around a rejected sample that tell a smooth excess from an artefact.
constexpr int RING = 3;

/// Number of frames above which a group of pixels, none of which is an outlier, does not show in the average.
constexpr int GROUP_FRAMES = 20;

/// Whether 3x3 pixels of one frame are tested together, too.
constexpr bool combine_groups(int n, float kappa_group, int grow) {
    return kappa_group > 0 && n > 1 && (n <= GROUP_FRAMES || grow > 0);
}

/// How far around a pixel the first look counts: growth beside a rejected sample, or groups and what goes with them.
constexpr int combine_margin(bool groups, int grow) { return groups ? 2 + grow : 1; }

/// How far around a pixel its samples count: the first look at them rests on those patches, or on a local maximum of
/// the curvature's box.
constexpr int combine_reach(int radius, int margin) { return margin + 1 + (radius > RING ? radius : RING); }

void combine(const CombineSetup& setup, const CombineFrames& frames, const CombineInput& input,
             const CombineOutput& output);

} // namespace fastack
