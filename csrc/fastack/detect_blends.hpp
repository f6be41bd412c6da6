#pragma once
// Stars closer to another than the matched filter resolves.

#include "fastack/detect_filter.hpp"

#include <vector>

namespace fastack {

/// A peak of the less smoothed image, in what the matched filter would say of it.
struct Part {
    double x, y, snr;
    std::ptrdiff_t px, py; ///< the highest pixel
};

class Deblender {
  public:
    Deblender(Image<const float> image, const Kernel& kernel, double fwhm);

    /// Farther neighbours have a maximum of their own.
    static constexpr double reach = 2.4; ///< FWHM

    /// The star's own peak and those beside it; none where it stands alone, or too close to the border. `beside`: what
    /// has been found already in reach of it.
    const std::vector<Part>& parts(const Detection& star, float noise, const std::vector<Detection>& beside);

  private:
    bool lopsided(const Detection& star, float noise, const std::vector<Detection>& beside) const;
    void smooth(float sky, float noise);
    Part part(std::ptrdiff_t u, std::ptrdiff_t v, const std::vector<float>& values) const;

    static constexpr float asymmetry = 0.04f; ///< of a single star, over its height

    Image<const float> image_;
    const Kernel& kernel_;
    double fwhm_;
    double narrow_;           ///< sigma of the Gaussian that the image is smoothed with
    std::ptrdiff_t half_;     ///< its radius
    std::ptrdiff_t r_, side_; ///< of the window about the star
    std::ptrdiff_t cx_ = 0, cy_ = 0;
    std::vector<float> tap_;
    float square_; ///< noise of a smoothed pixel over that of a pixel
    std::vector<float> lines_, smooth_, rest_;
    std::vector<Part> parts_;
};

} // namespace fastack
