#include "fastack/detect_blends.hpp"

#include "fastack/detect_sharp.hpp"

#include <algorithm>
#include <bit>

namespace fastack {

using std::ptrdiff_t;

Deblender::Deblender(Image<const float> image, const Kernel& kernel, double fwhm)
    : image_(image), kernel_(kernel), fwhm_(fwhm), narrow_(std::max(0.5 * kernel.sigma, 0.35)),
      half_(static_cast<ptrdiff_t>(std::ceil(0.5 * fwhm))), r_(static_cast<ptrdiff_t>(std::ceil(reach * fwhm)) + 1),
      side_(2 * r_ + 1), tap_(2 * half_ + 1), lines_((side_ + 2 * half_) * side_), smooth_(side_ * side_),
      rest_(side_ * side_) {
    float sum = 0;
    for (ptrdiff_t j = -half_; j <= half_; ++j)
        sum += tap_[j + half_] = static_cast<float>(std::exp(-0.5 * static_cast<double>(j * j) / (narrow_ * narrow_)));
    square_ = 0;
    for (float& tap : tap_) {
        tap /= sum;
        square_ += tap * tap;
    }
}

const std::vector<Part>& Deblender::parts(const Detection& star, float noise, const std::vector<Detection>& beside) {
    parts_.clear();
    cx_ = std::lround(star.x);
    cy_ = std::lround(star.y);
    const ptrdiff_t room = r_ + half_;
    if (cx_ < room || cy_ < room || cx_ + room >= image_.nx || cy_ + room >= image_.ny ||
        !lopsided(star, noise, beside))
        return parts_;
    smooth(star.sky, noise);
    const ptrdiff_t n = side_;
    const auto at = [&](ptrdiff_t u, ptrdiff_t v) { return smooth_[v * n + u]; };
    ptrdiff_t top_u = r_, top_v = r_;
    float height = -1;
    for (ptrdiff_t v = half_; v < n - half_; ++v)
        for (ptrdiff_t u = half_; u < n - half_; ++u)
            if (at(u, v) > height && static_cast<double>((u - r_) * (u - r_) + (v - r_) * (v - r_)) < fwhm_ * fwhm_) {
                top_u = u;
                top_v = v;
                height = at(u, v);
            }
    // A point-spread function is about symmetric: without the light of the pixel opposite, its centre in between, a
    // star beside the main one stands alone.
    const double centre_u =
        static_cast<double>(top_u) + vertex(at(top_u - 1, top_v), height, at(top_u + 1, top_v)).shift;
    const double centre_v =
        static_cast<double>(top_v) + vertex(at(top_u, top_v - 1), height, at(top_u, top_v + 1)).shift;
    // The point opposite (u, v): for all pixels the same fraction of a pixel off.
    const auto mu = static_cast<ptrdiff_t>(std::floor(2 * centre_u)),
               mv = static_cast<ptrdiff_t>(std::floor(2 * centre_v));
    const auto tu = static_cast<float>(2 * centre_u - static_cast<double>(mu)),
               tv = static_cast<float>(2 * centre_v - static_cast<double>(mv));
    std::fill(rest_.begin(), rest_.end(), 0.0f);
    const ptrdiff_t first_u = std::max<ptrdiff_t>(mu - (n - 2), 0), last_u = std::min(mu, n - 1);
    for (ptrdiff_t v = std::max<ptrdiff_t>(mv - (n - 2), 0); v <= std::min(mv, n - 1); ++v) {
        const float *here = &smooth_[v * n], *low = &smooth_[(mv - v) * n + mu], *high = low + n;
        for (ptrdiff_t u = first_u; u <= last_u; ++u)
            rest_[v * n + u] = here[u] - ((1 - tv) * ((1 - tu) * low[-u] + tu * low[1 - u]) +
                                          tv * ((1 - tu) * high[-u] + tu * high[1 - u]));
    }
    const auto alone = [&](ptrdiff_t u, ptrdiff_t v) { return rest_[v * n + u]; };
    const float photons = shot(star.sky, noise), least = asymmetry * height;
    for (ptrdiff_t v = 1; v < n - 1; ++v)
        for (ptrdiff_t u = 1; u < n - 1; ++u) {
            const float h = alone(u, v);
            if (!(h > least) || !(h > alone(u - 1, v) && h >= alone(u + 1, v) && h > alone(u, v - 1) &&
                                  h >= alone(u, v + 1) && h > alone(u - 1, v - 1) && h >= alone(u + 1, v + 1) &&
                                  h > alone(u + 1, v - 1) && h >= alone(u - 1, v + 1)))
                continue;
            const float error = square_ * std::sqrt(2 * (1 + photons * std::max(at(u, v), 0.0f)));
            const double apart = std::hypot(static_cast<double>(u) - centre_u, static_cast<double>(v) - centre_v);
            if (h < 5 * error + least || apart < 0.9 * fwhm_ || apart > reach * fwhm_)
                continue;
            if (parts_.empty())
                parts_.push_back(part(top_u, top_v, smooth_));
            parts_.push_back(part(u, v, rest_));
        }
    return parts_;
}

/// The window about the star, smoothed, above the sky in units of the noise.
void Deblender::smooth(float sky, float noise) {
    std::fill(lines_.begin(), lines_.end(), 0.0f);
    std::fill(smooth_.begin(), smooth_.end(), 0.0f);
    const float scale = 1.0f / noise;
    for (ptrdiff_t v = 0; v < side_ + 2 * half_; ++v) {
        const float* row = image_.row(cy_ - r_ - half_ + v) + cx_ - r_ - half_;
        float* line = &lines_[v * side_];
        for (ptrdiff_t j = 0; j <= 2 * half_; ++j)
            for (ptrdiff_t u = 0; u < side_; ++u)
                line[u] += tap_[j] * (row[u + j] - sky) * scale;
    }
    for (ptrdiff_t v = 0; v < side_; ++v)
        for (ptrdiff_t j = 0; j <= 2 * half_; ++j) {
            const float* line = &lines_[(v + j) * side_];
            float* out = &smooth_[v * side_];
            for (ptrdiff_t u = 0; u < side_; ++u)
                out[u] += tap_[j] * line[u];
        }
}

Part Deblender::part(ptrdiff_t u, ptrdiff_t v, const std::vector<float>& values) const {
    const auto at = [&](ptrdiff_t i, ptrdiff_t j) { return values[j * side_ + i]; };
    const Vertex across = vertex(at(u - 1, v), at(u, v), at(u + 1, v));
    const Vertex down = vertex(at(u, v - 1), at(u, v), at(u, v + 1));
    // a Gaussian smoothed by a narrower one: its height falls by s^2 / (s^2 + n^2)
    const double s2 = kernel_.sigma * kernel_.sigma;
    const double height = static_cast<double>(at(u, v)) * across.gain * down.gain * (s2 + narrow_ * narrow_) / s2;
    const ptrdiff_t px = cx_ - r_ + u, py = cy_ - r_ + v;
    return {static_cast<double>(px) + across.shift, static_cast<double>(py) + down.shift,
            height * std::sqrt(kernel_.norm), px, py};
}

/// Whether a pixel in reach of a star, and not of a neighbour found already, is much brighter than the place opposite,
/// or the core broader than a star's: cheap, and true of pairs.
bool Deblender::lopsided(const Detection& star, float noise, const std::vector<Detection>& beside) const {
    if (star.sharpness < 0.85f)
        return true;
    const double far = reach * fwhm_ + 1;
    const auto explained = [&](ptrdiff_t x, ptrdiff_t y) {
        const auto squared = [&](const Detection& d) {
            const double dx = static_cast<double>(x) - d.x, dy = static_cast<double>(y) - d.y;
            return dx * dx + dy * dy;
        };
        return squared(star) > far * far || std::any_of(beside.begin(), beside.end(),
                                                        [&](const Detection& d) { return squared(d) < fwhm_ * fwhm_; });
    };
    const auto core = static_cast<float>(0.64 * fwhm_ * fwhm_);
    const float least = 4 * noise + 0.5f * asymmetry * star.peak, limit = star.sky + least;
    // The point opposite (u, v) is (2 x - u, 2 y - v).
    const double mx = 2 * star.x - static_cast<double>(cx_), my = 2 * star.y - static_cast<double>(cy_);
    const auto ix = static_cast<ptrdiff_t>(std::floor(mx)), iy = static_cast<ptrdiff_t>(std::floor(my));
    const auto tx = static_cast<float>(mx - static_cast<double>(ix)),
               ty = static_cast<float>(my - static_cast<double>(iy));
    if (ix < r_ || iy < r_ || ix + r_ + 1 >= image_.nx || iy + r_ + 1 >= image_.ny)
        return false;
    constexpr ptrdiff_t word = 32;
    std::uint32_t bits[word];
    for (ptrdiff_t left = -r_; left <= r_; left += word)
        for (ptrdiff_t top = -r_; top <= r_; top += word) {
            const ptrdiff_t height = std::min(word, r_ + 1 - top);
            rows().detect.lit(image_.row(cy_ + top) + cx_ + left, image_.stride, std::min(word, r_ + 1 - left), height,
                              limit, bits);
            for (ptrdiff_t v = top; v < top + height; ++v) {
                if (!bits[v - top])
                    continue;
                const auto v2 = static_cast<float>(v * v);
                const auto half = v2 <= core ? static_cast<ptrdiff_t>(std::sqrt(core - v2)) : -1;
                const float *here = image_.row(cy_ + v) + cx_, *low = image_.row(iy - v) + ix,
                            *high = image_.row(iy - v + 1) + ix;
                for (std::uint32_t still = bits[v - top]; still; still &= still - 1) {
                    const ptrdiff_t u = left + std::countr_zero(still);
                    if (u >= -half && u <= half)
                        continue;
                    const float opposite = (1 - ty) * ((1 - tx) * low[-u] + tx * low[1 - u]) +
                                           ty * ((1 - tx) * high[-u] + tx * high[1 - u]);
                    if (here[u] - opposite > least && !explained(cx_ + u, cy_ + v))
                        return true;
                }
            }
        }
    return false;
}

} // namespace fastack
