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

/// What a point-spread function of the width `fwhm`, or a broader one, cannot make: a pixel that is too bright for its
/// neighbours. Of a Gaussian sampled anywhere, the mean of the two neighbours on an axis is at least g = exp(-1/(2
/// sigma^2)) of the pixel, that of the two pixels next to a pair at least g^2 of the pair's, and four pixels in a
/// square obey I(0,0) I(1,1) = I(1,0) I(0,1). A Moffat profile is further on the safe side.
class Sharpness {
  public:
    explicit Sharpness(double fwhm) {
        const double sigma = fwhm_to_sigma * safety * fwhm;
        next_ = static_cast<float>(std::exp(-0.5 / (sigma * sigma)));
    }

    /// Light of the pixel next to one of light 1.
    float next() const { return next_; }

    /// Whether a pixel beside hit ones, which `z` gives as NaN, is too bright for the mean of what is left of its four
    /// neighbours. `z(dx, dy)`: neighbours in units of the sky's noise. `shot`: variance a unit of z. `limit`: sigma.
    template <class Z> bool too_bright(const Z& z, float shot, float limit) const {
        float sum = 0, n = 0;
        for (const float near : {z(-1, 0), z(1, 0), z(0, -1), z(0, 1)})
            if (there(near)) {
                sum += near;
                n += 1;
            }
        if (n == 0)
            return true;
        const float here = z(0, 0), near = sum / n, excess = (1 - psf_mismatch) * here - near / next_;
        const auto variance = [&](float light) { return 1 + shot * std::max(light, 0.0f); };
        return excess > 0 && excess * excess > limit * limit * (variance(here) + variance(near) / (n * next_ * next_));
    }

  private:
    static constexpr double safety = 0.9; ///< smallest local width over the frame's: seeing, ellipticity, focus

    float next_;
};

constexpr float hit_limit = 4.0f; ///< sigma by which the core of a hit is too bright

/// Pixels that are tested together, in the order in which they are added.
class SharpTests {
  public:
    explicit SharpTests(Image<const float> image) : image_(image) {
        for (int k = 0; k < SharpPixels::around; ++k)
            offset_[k] = SharpPixels::dy[k] * image.stride + SharpPixels::dx[k];
    }

    /// `shot`: variance a unit of light above the sky, in units of the noise; `limit`: sigma.
    void add(std::ptrdiff_t x, std::ptrdiff_t y, float sky, float noise, float shot, float limit) {
        if (x >= 2 && y >= 2 && x + 2 < image_.nx && y + 2 < image_.ny) {
            const float* middle = image_.row(y) + x;
            for (int k = 0; k < SharpPixels::around; ++k)
                pixels_.pixel[k][n_] = middle[offset_[k]];
        } else {
            for (int k = 0; k < SharpPixels::around; ++k) {
                const std::ptrdiff_t px = x + SharpPixels::dx[k], py = y + SharpPixels::dy[k];
                const bool inside = px >= 0 && py >= 0 && px < image_.nx && py < image_.ny;
                pixels_.pixel[k][n_] = inside ? image_(py, px) : std::numeric_limits<float>::quiet_NaN();
            }
        }
        pixels_.sky[n_] = sky;
        pixels_.noise[n_] = noise;
        pixels_.shot[n_] = shot;
        pixels_.limit[n_] = limit;
        ++n_;
    }

    int size() const { return n_; }
    bool full() const { return n_ == sharp_lanes; }

    /// Calls `visit(i)` for the i-th of the pixels added if no point-spread function can make it; forgets them all.
    template <class Visit> void run(const Sharpness& psf, Visit&& visit) {
        std::uint8_t hit[sharp_lanes];
        rows().detect.sharp(pixels_, n_, psf.next(), hit);
        const int n = n_;
        n_ = 0;
        for (int i = 0; i < n; ++i)
            if (hit[i])
                visit(i);
    }

    /// Whether that is true of any of them.
    bool any(const Sharpness& psf) {
        bool found = false;
        run(psf, [&](int) { found = true; });
        return found;
    }

  private:
    Image<const float> image_;
    std::ptrdiff_t offset_[SharpPixels::around];
    SharpPixels pixels_{};
    int n_ = 0;
};

} // namespace fastack
