// What fits start from: widths of profiles and of stars, and the sky around them.

#include "fastack/measure.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace fastack {

using std::ptrdiff_t;

namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double pi = 3.14159265358979323846;

} // namespace

double MoffatShape::fwhm() const {
    return 2 / std::sqrt(std::sqrt(determinant()));
}

double MoffatShape::volume() const {
    return pi * eta / ((std::exp2(eta) - 1) * (1 - eta) * std::sqrt(determinant()));
}

double width_over_pixel(const MoffatShape& shape, double angle, double width) {
    constexpr double node[4] = {-0.8611363115940526, -0.3399810435848563, 0.3399810435848563, 0.8611363115940526};
    constexpr double part[4] = {0.34785484513745385, 0.6521451548625461, 0.6521451548625461, 0.34785484513745385};
    constexpr int steps = 64;      // of which two about the half maximum are looked for, and a line is drawn in between
    constexpr double widest = 1.3; // of what a pixel may add in quadrature
    const double k = std::exp2(shape.eta) - 1, along = std::cos(angle), across = std::sin(angle);
    const auto profile = [&](double distance) {
        double sum = 0;
        for (int i = 0; i < 4; ++i)
            for (int j = 0; j < 4; ++j) {
                const double x = distance * along + node[i] / 2, y = distance * across + node[j] / 2;
                const double form = shape.a * x * x + 2 * shape.b * x * y + shape.c * y * y;
                sum += part[i] * part[j] / 4 * std::pow(1 + k * form, -1 / shape.eta);
            }
        return sum;
    };
    const auto half = [&](int step) { return std::hypot(width, widest * step / (steps - 1)) / 2; };
    const double wanted = profile(0) / 2;
    int low = 0, high = steps - 1;
    double inner = profile(half(low)), outer = profile(half(high));
    if (!(inner > wanted && outer < wanted))
        return 2 * half(inner > wanted ? high : low);
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        const double value = profile(half(middle));
        (value > wanted ? inner : outer) = value;
        (value > wanted ? low : high) = middle;
    }
    return 2 * (half(low) + (half(high) - half(low)) * (inner - wanted) / (inner - outer));
}

void star_rings(Image<const float> image, const double* xy, const double* skies, ptrdiff_t n, double* fwhm,
                double* peak) {
    constexpr int reach = 20;
    std::vector<std::vector<std::pair<int, int>>> rings(reach);
    std::vector<double> radii(reach, 0);
    for (int dy = -reach; dy <= reach; ++dy)
        for (int dx = -reach; dx <= reach; ++dx) {
            const double r = std::hypot(dx, dy);
            if (const long k = std::lround(r); k < reach) {
                rings[k].emplace_back(dx, dy);
                radii[k] += r;
            }
        }
    for (int k = 0; k < reach; ++k)
        radii[k] /= static_cast<double>(rings[k].size());
    const auto value = [&](ptrdiff_t y, ptrdiff_t x) {
        return y < 0 || y >= image.ny || x < 0 || x >= image.nx ? std::numeric_limits<float>::quiet_NaN() : image(y, x);
    };
    for (ptrdiff_t i = 0; i < n; ++i) {
        fwhm[i] = peak[i] = nan;
        const double x = xy[2 * i], y = xy[2 * i + 1], sky = skies[i];
        if (i + 2 < n && std::abs(xy[2 * i + 4]) < 1e9 && std::abs(xy[2 * i + 5]) < 1e9)
            prefetch(image, std::lround(xy[2 * i + 4]), std::lround(xy[2 * i + 5]), 4);
        if (!(std::abs(x) < 1e9 && std::abs(y) < 1e9))
            continue;
        const ptrdiff_t cx = std::lround(x), cy = std::lround(y);
        ptrdiff_t mx = cx, my = cy;
        for (ptrdiff_t ky = cy - 1; ky <= cy + 1; ++ky)
            for (ptrdiff_t kx = cx - 1; kx <= cx + 1; ++kx)
                if (const float v = value(ky, kx); std::isfinite(v) && !(v - sky <= peak[i])) {
                    peak[i] = v - sky;
                    mx = kx;
                    my = ky;
                }
        double inner = peak[i];
        for (int k = 1; k < reach && peak[i] > 0; ++k) {
            double sum = 0;
            int count = 0;
            for (const auto& [dx, dy] : rings[k])
                if (const float v = value(my + dy, mx + dx); std::isfinite(v)) {
                    sum += v - sky;
                    ++count;
                }
            if (!count)
                break;
            const double outer = sum / count;
            if (outer < peak[i] / 2) {
                fwhm[i] = 2 * (radii[k - 1] + (radii[k] - radii[k - 1]) * (inner - peak[i] / 2) / (inner - outer));
                break;
            }
            inner = outer;
        }
    }
}

void sky_annulus(Image<const float> image, const double* xy, ptrdiff_t n, double inner, double outer, double* level,
                 double* noise) {
    std::vector<float> pixels;
    const ptrdiff_t reach = static_cast<ptrdiff_t>(outer);
    const auto median = [&pixels] {
        const auto middle = pixels.begin() + static_cast<ptrdiff_t>(pixels.size() / 2);
        std::nth_element(pixels.begin(), middle, pixels.end());
        return *middle;
    };
    for (ptrdiff_t i = 0; i < n; ++i) {
        level[i] = noise[i] = nan;
        const double x = xy[2 * i], y = xy[2 * i + 1];
        if (!(std::abs(x) < 1e9 && std::abs(y) < 1e9))
            continue;
        const ptrdiff_t cx = std::lround(x), cy = std::lround(y);
        pixels.clear();
        for (ptrdiff_t ky = std::max<ptrdiff_t>(cy - reach, 0); ky <= std::min(cy + reach, image.ny - 1); ++ky)
            for (ptrdiff_t kx = std::max<ptrdiff_t>(cx - reach, 0); kx <= std::min(cx + reach, image.nx - 1); ++kx) {
                const double r2 = double((kx - cx) * (kx - cx) + (ky - cy) * (ky - cy));
                if (r2 >= inner * inner && r2 <= outer * outer && std::isfinite(image(ky, kx)))
                    pixels.push_back(image(ky, kx));
            }
        if (pixels.size() < 16)
            continue;
        const float middle = median();
        for (float& v : pixels)
            v = std::abs(v - middle);
        level[i] = middle;
        noise[i] = 1.4826 * median();
    }
}

} // namespace fastack
