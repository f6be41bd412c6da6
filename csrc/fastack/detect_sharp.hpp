#pragma once
// What no point-spread function can make: the test that tells hot pixels and cosmic rays from stars.

#include "fastack/detect_filter.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fastack {

/// A square of pixels, cut at the image's border.
struct Box {
    std::ptrdiff_t x0, x1, y0, y1;

    Box(Image<const float> image, std::ptrdiff_t x, std::ptrdiff_t y, std::ptrdiff_t r)
        : x0(std::max<std::ptrdiff_t>(x - r, 0)), x1(std::min(x + r + 1, image.nx)),
          y0(std::max<std::ptrdiff_t>(y - r, 0)), y1(std::min(y + r + 1, image.ny)) {}
};

/// Variance of a pixel per unit of light above the sky, in units of the sky's noise, as if that were all photons.
inline float shot(float sky, float noise) {
    return sky > noise ? noise / sky : 0.0f;
}

inline std::uint64_t key(std::ptrdiff_t x, std::ptrdiff_t y) {
    return static_cast<std::uint64_t>(y) << 32 | static_cast<std::uint32_t>(x);
}

/// The 5x5 pixels about one, above the sky in units of the noise; NaN outside the image.
class Vicinity {
  public:
    Vicinity(Image<const float> image, std::ptrdiff_t x, std::ptrdiff_t y, float sky, float noise) {
        const float scale = 1.0f / noise;
        if (x >= 2 && y >= 2 && x + 2 < image.nx && y + 2 < image.ny) {
            for (int v = 0; v < 5; ++v) {
                const float* row = image.row(y - 2 + v) + x - 2;
                for (int u = 0; u < 5; ++u)
                    z_[v][u] = (row[u] - sky) * scale;
            }
            return;
        }
        for (int v = 0; v < 5; ++v)
            for (int u = 0; u < 5; ++u) {
                const std::ptrdiff_t px = x - 2 + u, py = y - 2 + v;
                const bool inside = px >= 0 && py >= 0 && px < image.nx && py < image.ny;
                z_[v][u] = inside ? (image(py, px) - sky) * scale : std::numeric_limits<float>::quiet_NaN();
            }
    }

    float operator()(int dx, int dy) const { return z_[dy + 2][dx + 2]; }

  private:
    float z_[5][5];
};

/// Whether a point-spread function of the width `fwhm`, or a broader one, cannot make the pixel: it is too
/// bright for its neighbours. Of a Gaussian sampled anywhere, the mean of the two neighbours on an axis is at
/// least g = exp(-1/(2 sigma^2)) of the pixel, that of the two pixels next to a pair at least g^2 of the
/// pair's, and four pixels in a square obey I(0,0) I(1,1) = I(1,0) I(0,1). A Moffat profile is further on the
/// safe side.
class Sharpness {
  public:
    explicit Sharpness(double fwhm) {
        const double sigma = fwhm_to_sigma * safety * fwhm;
        next_ = static_cast<float>(std::exp(-0.5 / (sigma * sigma)));
    }

    /// `z(dx, dy)`: neighbours in units of the sky's noise, NaN where missing. `shot`: variance a unit of z.
    /// `limit`: sigma.
    template <class Z> bool too_sharp(const Z& z, float shot, float limit) const {
        const float here = z(0, 0);
        if (!there(here))
            return false;
        const Test test{shot, limit};
        float sum = 0, n = 0;
#pragma GCC unroll 2
        for (int axis = 0; axis < 2; ++axis) {
            const int dx = axis == 0, dy = axis == 1;
            const float near[2] = {z(-dx, -dy), z(dx, dy)};
            for (const float value : near)
                if (there(value)) {
                    sum += value;
                    n += 1;
                }
            if (test.exceeds(here, 1, 0.5f * (near[0] + near[1]), 2, next_))
                return true;
#pragma GCC unroll 2
            for (int side = 0; side < 2; ++side) {
                const int u = side ? dx : -dx, v = side ? dy : -dy;
                if (!alike(here, near[side]))
                    continue;
                const float pair = 0.5f * (here + near[side]);
                const float along = 0.5f * (near[1 - side] + z(2 * u, 2 * v));
                const float across = 0.25f * (z(dy, dx) + z(-dy, -dx) + z(u + dy, v + dx) + z(u - dy, v - dx));
                if (test.exceeds(pair, 2, along, 2, next_ * next_) || test.exceeds(pair, 2, across, 4, next_))
                    return true;
            }
        }
        for (const int u : {-1, 1})
            for (const int v : {-1, 1})
                if (test.corner(here, z(u, 0), z(0, v), z(u, v)))
                    return true;
        return n > 2 && test.exceeds(here, 1, sum / n, n, next_);
    }

    /// The same of a pixel beside hit ones, which `z` gives as NaN: against the mean of what is left of its
    /// four neighbours.
    template <class Z> bool too_bright(const Z& z, float shot, float limit) const {
        const float here = z(0, 0);
        float sum = 0, n = 0;
        for (const float near : {z(-1, 0), z(1, 0), z(0, -1), z(0, 1)})
            if (there(near)) {
                sum += near;
                n += 1;
            }
        return n == 0 || Test{shot, limit}.exceeds(here, 1, sum / n, n, next_);
    }

  private:
    static constexpr double safety = 0.9;   ///< smallest local width over the frame's: seeing, ellipticity, focus
    static constexpr float mismatch = 0.1f; ///< of a real profile's core against a Gaussian

    static constexpr float companion = 0.4f; ///< part of a pixel's light that makes its neighbour one of a pair
    /// Smallest I(0,0) I(1,1) / (I(1,0) I(0,1)): that of an ellipticity of 0.4 at 45 degrees and a FWHM
    /// of 1.8.
    static constexpr float corner_part = 0.4f;

    /// Of one hit or one star; a star's pixel next to a much brighter hit is not judged together with it.
    static bool alike(float here, float mate) { return mate > companion * here && here > companion * mate; }

    struct Test {
        float shot, limit;

        float variance(float z) const { return 1 + shot * std::max(z, 0.0f); }

        /// Whether `here`, a mean of n pixels, exceeds `near` / ratio, a mean of m. False where one is NaN.
        bool exceeds(float here, float n, float near, float m, float ratio) const {
            const float excess = (1 - mismatch) * here - near / ratio;
            if (!(excess > 0))
                return false;
            return excess * excess > limit * limit * (variance(here) / n + variance(near) / (m * ratio * ratio));
        }

        /// Whether the fourth pixel of a square is too dark for the other three.
        bool corner(float here, float beside, float below, float across) const {
            if (!alike(here, beside) || !alike(here, below))
                return false;
            const float b = corner_part * beside / here, c = corner_part * below / here;
            const float excess = b * below - across;
            if (!(excess > 0))
                return false;
            const float spread = variance(across) + c * c * variance(beside) + b * b * variance(below) +
                                 b * b * c * c / (corner_part * corner_part) * variance(here);
            return excess * excess > limit * limit * spread;
        }
    };

    float next_;
};

} // namespace fastack
