#pragma once
// A frame's pixels on the output grid.

#include "fastack/view.hpp"

namespace fastack {

enum class Kernel { nearest, bilinear, bicubic, lanczos2, lanczos3, lanczos4, area };

/// Output pixels to pixels of the frame: sum of c[k] u^i v^j with u = X - origin_x, v = Y - origin_y, in the
/// order 1, u, v, u^2, uv, v^2, u^3, u^2 v, u v^2, v^3.
struct Map {
    double x[10] = {}, y[10] = {};
    double origin_x = 0, origin_y = 0;
};

/// Rows and columns [y0, y1) x [x0, x1).
struct Box {
    std::ptrdiff_t y0, y1, x0, x1;

    bool empty() const { return y0 >= y1 || x0 >= x1; }
};

/// A part of a frame, and how it enters the output.
struct Section {
    Image<const float> pixels;     // NaN = missing
    std::ptrdiff_t x0 = 0, y0 = 0; // frame pixel of pixels(0, 0)
    std::ptrdiff_t ny = 0, nx = 0; // of the whole frame
    float scale = 1, offset = 0, sky = 0;
    float level = 0; // subtracted before the interpolation and added after it, which keeps an even sky exact
    Span<const std::int32_t> saturated; // x, y of each saturated pixel of the frame
    Image<const float> sky_mesh;        // of a surface that is taken off the output, see render_background; or empty
    std::ptrdiff_t sky_ny = 0, sky_nx = 0, sky_y = 0, sky_x = 0; // its shape, and the output pixel it begins at
};

/// Planes of one tile; those without data are not written.
struct Resampled {
    PanelImage<float> out;
    PanelImage<unsigned char> factor;
    Image<unsigned char> flags;
    Image<std::uint16_t> saturated_count;
};

struct ResampleHow {
    Kernel kernel = Kernel::lanczos3;
    float max_lost = 0.5f;
    bool square = false; // the input is a variance: sum k^2 V / (sum k)^2, times |J|^2
};

constexpr unsigned char flag_saturated = 1, flag_interpolated = 2;

/// Part of a frame of ny x nx that the tile needs; empty where they do not overlap.
Box input_window(const Map&, Box tile, std::ptrdiff_t ny, std::ptrdiff_t nx, Kernel);

/// out = scale |J| (sum k s / sum k - sky) + offset - sky surface. Throws std::invalid_argument where the section does not
/// hold the tile's input window.
void resample_tile(const Section&, const Map&, Box tile, const ResampleHow&, const Resampled&);

} // namespace fastack
