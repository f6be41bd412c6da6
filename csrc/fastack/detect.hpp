#pragma once
// Stars by a matched filter; hot pixels and cosmic rays by what no point-spread function can make.

#include "fastack/view.hpp"

#include <cstdint>
#include <limits>
#include <vector>

namespace fastack {

/// Sky level and noise on a mesh (see background.hpp).
struct Sky {
    Image<const float> level;
    Image<const float> noise;
};

enum DetectionFlag : std::uint16_t { saturated = 1, edge = 2, blended = 4, sharp = 16 };

struct Detection {
    double x, y;     ///< pixel
    float flux;      ///< of the fitted Gaussian, ADU
    float flux_err;  ///< from the background's noise
    float peak;      ///< highest pixel of the 3x3 about the maximum, above the sky
    float sky;       ///< level at the maximum
    float sharpness; ///< `peak` over what the matched filter predicts for that pixel
    float snr;       ///< of the matched filter
    std::uint16_t flags;
};

struct Pixel {
    std::int32_t x, y;
};

struct Search {
    double fwhm;      ///< of the point-spread function, pixel
    double narrow;    ///< the same along its shorter axis
    float threshold;  ///< matched-filter signal-to-noise ratio
    float saturation; ///< ADU; NaN: taken from the image where its highest value forms plateaus
};

/// A pixel that stands out of the noise by itself, and the sky there.
struct BrightPixel {
    std::int32_t x, y;
    float sky, noise;
};

/// Pixels above 6 sigma by rows: all of them, or the highest and those from which `find_hits` finds the same hits where
/// its `narrow` is `widest` or less.
struct BrightPixels {
    double widest = std::numeric_limits<double>::infinity(); ///< pixel; infinity: all
    std::vector<BrightPixel> list;
};

/// The detections, brightest first (then by y and x); the bright pixels, which the same pass over the image finds,
/// where a list for them is given.
std::vector<Detection> detect_stars(Image<const float> image, Sky sky, Search search, BrightPixels* bright = nullptr);

/// All bright pixels.
std::vector<BrightPixel> bright_pixels(Image<const float> image, Sky sky);

/// Full widths at half maximum, pixel: geometric mean of both axes, and along the shorter one.
struct Widths {
    double mean = std::numeric_limits<double>::quiet_NaN();
    double narrow = std::numeric_limits<double>::quiet_NaN();
};

/// Of the image's unsharp sources, found with a filter of middle width; NaN where fewer than three can be
/// measured.
Widths find_widths(Image<const float> image, Sky sky, float saturation);

/// Variance of one pixel: of the sky, plus `shot` (1/gain) times the light above it.
struct Hits {
    double narrow;    ///< full width at half maximum along the shorter axis of the point-spread function, pixel
    float saturation; ///< ADU; NaN: not known
    float shot;       ///< ADU; NaN: at most what the sky's own noise allows
};

/// Pixels of hot pixels and cosmic rays with their wings, by rows; their cores are among the bright pixels.
std::vector<Pixel> find_hits(Image<const float> image, Span<const BrightPixel> bright, Hits how);

} // namespace fastack
