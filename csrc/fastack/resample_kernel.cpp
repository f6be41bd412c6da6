#include "fastack/resample_kernel.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

namespace fastack {
namespace {

double lanczos(double x, int a) {
    if (x == 0)
        return 1;
    if (std::fabs(x) >= a)
        return 0;
    const double t = std::numbers::pi * x;
    return a * std::sin(t) * std::sin(t / a) / (t * t);
}

/// Keys 1981, IEEE Trans. ASSP 29, 1153, with a = -1/2.
double keys(double x) {
    x = std::fabs(x);
    if (x >= 2)
        return 0;
    return x < 1 ? (1.5 * x - 2.5) * x * x + 1 : ((-0.5 * x + 2.5) * x - 4) * x + 2;
}

/// Weights of all taps at phase f, normalised.
template <class Profile> std::array<double, 8> weights(const Profile& profile, int taps, double f) {
    std::array<double, 8> w{};
    double sum = 0;
    for (int k = 0; k < taps; ++k)
        sum += w[k] = profile(f - (k - taps / 2 + 1));
    for (double& each : w)
        each /= sum;
    return w;
}

/// Cubic through four values at the given nodes, lowest power first.
std::array<float, 4> interpolate(std::array<double, 4> z, std::array<double, 4> value) {
    for (int order = 1; order < 4; ++order) // divided differences
        for (int i = 3; i >= order; --i)
            value[i] = (value[i] - value[i - 1]) / (z[i] - z[i - order]);
    std::array<double, 4> c{};
    for (int i = 3; i >= 0; --i) { // c = c (x - z[i]) + value[i]
        for (int k = 3; k > 0; --k)
            c[k] = c[k - 1] - z[i] * c[k];
        c[0] = value[i] - z[i] * c[0];
    }
    return {static_cast<float>(c[0]), static_cast<float>(c[1]), static_cast<float>(c[2]),
            static_cast<float>(c[3])};
}

/// The polynomials of ResampleKernel, interpolated at Chebyshev nodes; no weight errs by more than 2e-6.
template <class Profile> ResampleKernel expand(const Profile& profile, int taps) {
    ResampleKernel kernel{};
    kernel.taps = taps;
    const int half = taps / 2;
    std::array<double, 4> z{}, even{}, odd{};
    for (int k = 0; k < half; ++k) {
        for (int n = 0; n < 4; ++n) {
            z[n] = 0.125 * (1 - std::cos((n + 0.5) * std::numbers::pi / 4));
            const double u = std::sqrt(z[n]), g = 0.25 - z[n];
            const auto above = weights(profile, taps, 0.5 + u), below = weights(profile, taps, 0.5 - u);
            const bool middle = k == half - 1;
            const double a = above[taps - 1 - k] - (middle ? 0.5 + u : 0);
            const double b = below[taps - 1 - k] - (middle ? 0.5 - u : 0);
            even[n] = (a + b) / (2 * g);
            odd[n] = (a - b) / (2 * g * u);
        }
        std::ranges::copy(interpolate(z, even), kernel.even[k]);
        std::ranges::copy(interpolate(z, odd), kernel.odd[k]);
    }
    return kernel;
}

} // namespace

const ResampleKernel& expanded(Kernel kernel) {
    static const ResampleKernel nearest{.taps = 1, .even = {}, .odd = {}};
    static const ResampleKernel bilinear{.taps = 2, .even = {}, .odd = {}};
    static const ResampleKernel bicubic = expand(keys, 4);
    static const ResampleKernel lanczos2 = expand([](double x) { return lanczos(x, 2); }, 4);
    static const ResampleKernel lanczos3 = expand([](double x) { return lanczos(x, 3); }, 6);
    static const ResampleKernel lanczos4 = expand([](double x) { return lanczos(x, 4); }, 8);
    switch (kernel) {
    case Kernel::nearest:
        return nearest;
    case Kernel::bilinear:
        return bilinear;
    case Kernel::bicubic:
        return bicubic;
    case Kernel::lanczos2:
        return lanczos2;
    case Kernel::lanczos4:
        return lanczos4;
    default:
        return lanczos3;
    }
}

} // namespace fastack
