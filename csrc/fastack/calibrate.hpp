#pragma once
// Stored FITS pixels to calibrated single-precision ones, in one pass.

#include "fastack/row_file.hpp"
#include "fastack/view.hpp"

#include <limits>
#include <optional>
#include <vector>

namespace fastack {

/// How a FITS file stores a pixel: `physical = stored * bscale + bzero`.
struct Storage {
    int bitpix = 16; ///< 8, 16, 32, 64, -32, -64
    double bscale = 1;
    double bzero = 0;
    std::optional<std::int64_t> blank;

    /// Bytes of one pixel; throws std::invalid_argument where FITS does not know `bitpix`.
    std::ptrdiff_t bytes() const;
};

/// Everything that is taken off or divided out; an empty view stands for "none". All have the shape of the output.
struct Masters {
    Span<const double> level; ///< overscan level of each row
    Image<const float> bias;
    Image<const float> dark;
    float dark_scale = 1;
    Image<const float> inv_flat; ///< NaN marks a bad pixel

    /// Those of rows [y, y + n).
    Masters rows(std::ptrdiff_t y, std::ptrdiff_t n) const;
};

struct Position {
    std::int32_t x, y;
};

/// `out = (physical - level - bias - dark * dark_scale) * inv_flat` row by row; BLANK and NaN become NaN.
/// Returns the positions of pixels whose physical value reaches `saturation`, in reading order.
std::vector<Position> calibrate(Image<const unsigned char> raw, const Storage& storage, const Masters& masters,
                                double saturation, Image<float> out);

/// The same of pixels that still lie in a file, which is read piece by piece. Throws what RowFile::read does.
std::vector<Position> calibrate(const RowFile& raw, const Storage& storage, const Masters& masters, double saturation,
                                Image<float> out);

/// Makes pixels NaN that are in a list of x, y, sorted by y; (x0, y0) is the image's first pixel.
void blank_pixels(Image<float> image, Span<const std::int32_t> list, std::ptrdiff_t y0, std::ptrdiff_t x0);

} // namespace fastack
