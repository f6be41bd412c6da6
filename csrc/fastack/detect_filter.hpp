#pragma once
// The matched filter, its maxima, and the pixels that stand out by themselves: one pass over the image.

#include "fastack/background.hpp"
#include "fastack/detect.hpp"
#include "rows/rows.hpp"

#include <cmath>
#include <functional>
#include <vector>

namespace fastack {

constexpr double fwhm_to_sigma = 0.42466090014400953;

inline bool there(float v) {
    return std::isfinite(v);
}

/// Level and noise of the sky at any pixel of an image.
class SkyAt {
  public:
    SkyAt(Image<const float> image, Sky sky)
        : inverse_(invert(sky)), inverse_mesh_{inverse_.data(), sky.noise.ny, sky.noise.nx, sky.noise.nx},
          level_(sky.level, image.ny, image.nx, 0, 0, Surface::Shape::cubic),
          scale_(inverse_mesh_, image.ny, image.nx, 0, 0, Surface::Shape::linear) {}

    SkyAt(const SkyAt&) = delete;
    SkyAt& operator=(const SkyAt&) = delete;

    float level(std::ptrdiff_t y, std::ptrdiff_t x) const { return level_.at(y, x); }
    float noise(std::ptrdiff_t y, std::ptrdiff_t x) const { return 1.0f / scale_.at(y, x); }

    /// 1/noise as a mesh: what is interpolated.
    Image<const float> inverse_mesh() const { return inverse_mesh_; }

  private:
    static std::vector<float> invert(Sky sky);

    std::vector<float> inverse_;
    Image<const float> inverse_mesh_;
    Surface level_, scale_;
};

/// A Gaussian of the point-spread function's width, cut where 1 % of the signal-to-noise ratio is lost.
struct Kernel {
    double sigma;
    int radius;
    float tap[largest_radius + 1];    ///< scaled so that the squares of the two-dimensional filter sum up to 1
    float square[largest_radius + 1]; ///< tap^2
    double norm;                      ///< sum of the squares of the filter of central height 1

    explicit Kernel(double fwhm);

    double height(double r2) const { return std::exp(-0.5 * r2 / (sigma * sigma)); }
    double flux() const { return 2 * M_PI * sigma * sigma; } ///< of height 1
    double line() const {                                    ///< sum of the one-dimensional filter
        double sum = static_cast<double>(tap[0]);
        for (int j = 1; j <= radius; ++j)
            sum += 2 * static_cast<double>(tap[j]);
        return sum;
    }
    double sum() const { return line() * line(); } ///< of the two-dimensional filter
};

struct Maximum {
    std::int32_t x, y;
    float level, noise; ///< of the sky there
    float top;          ///< highest pixel of the 3x3 about it
    float snr[9];       ///< of the 3x3 about it
};

struct Maxima {
    std::vector<Maximum> list; ///< by rows
    bool gaps = false;         ///< whether pixels are missing
};

/// Told of the maxima of all rows before `end`, while the cache still holds these rows.
using Follow = std::function<void(const Maxima&, std::ptrdiff_t end)>;

/// Maxima of the filtered image above the threshold in rows [y0, y1); to `bright`, where it is given, the bright pixels
/// of these rows are added.
Maxima find_maxima(Image<const float> image, Sky sky, const SkyAt& at, const Kernel& kernel, float threshold,
                   std::ptrdiff_t y0, std::ptrdiff_t y1, BrightPixels* bright = nullptr, const Follow& follow = {});

/// Vertex of the parabola through three logarithms: exact for a Gaussian.
struct Vertex {
    double shift, gain; ///< pixel; height over the middle value
};

Vertex vertex(float left, float middle, float right);

} // namespace fastack
