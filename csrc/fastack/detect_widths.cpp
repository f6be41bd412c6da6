#include "fastack/detect.hpp"

#include "fastack/detect_filter.hpp"
#include "fastack/detect_sharp.hpp"

#include <algorithm>

namespace fastack {
namespace {

/// Sigma of a Gaussian whose second moment under a weight of that sigma is `moment`.
double unweighted(double moment, double weight) {
    const double inverse = 1 / moment - 1 / (weight * weight);
    return inverse > 0 ? std::sqrt(1 / inverse) : 2 * weight;
}

/// Width of a source by its second moments under a Gaussian weight of the same width (Bernstein & Jarvis
/// 2002, AJ 123, 583, section 3.1); NaN where that does not converge or the source is long.
Widths adaptive_widths(Image<const float> image, const Maximum& m, float sky, double start) {
    constexpr Widths failed{};
    constexpr double narrowest = 0.9, widest = 8.0; // sigma of the weight, pixel
    constexpr double longest = 0.5;                 // (a^2 - b^2) / (a^2 + b^2) under the weight
    double sigma = start, x = m.x, y = m.y;
    for (int round = 0; round < 20; ++round) {
        const double weight = std::max(sigma, narrowest);
        const auto r = static_cast<std::ptrdiff_t>(std::ceil(2.5 * weight));
        const std::ptrdiff_t cx = std::lround(x), cy = std::lround(y);
        if (cx < r || cy < r || cx + r >= image.nx || cy + r >= image.ny)
            return failed;
        double across[64][3]; // the weight of a column, times its distance, times that squared
        for (std::ptrdiff_t j = -r; j <= r; ++j) {
            const double dx = static_cast<double>(cx + j) - x, part = std::exp(-0.5 * dx * dx / (weight * weight));
            across[j + r][0] = part;
            across[j + r][1] = part * dx;
            across[j + r][2] = part * dx * dx;
        }
        double sum = 0, sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0;
        for (std::ptrdiff_t v = -r; v <= r; ++v) {
            const float* row = image.row(cy + v) + cx - r;
            double line[3] = {};
            for (std::ptrdiff_t u = 0; u <= 2 * r; ++u)
                for (int k = 0; k < 3; ++k)
                    line[k] += static_cast<double>(row[u] - sky) * across[u][k];
            const double dy = static_cast<double>(cy + v) - y, part = std::exp(-0.5 * dy * dy / (weight * weight));
            sum += part * line[0];
            sx += part * line[1];
            sy += part * dy * line[0];
            sxx += part * line[2];
            syy += part * dy * dy * line[0];
            sxy += part * dy * line[1];
        }
        if (!(sum > 0))
            return failed;
        sx /= sum;
        sy /= sum;
        sxx = sxx / sum - sx * sx;
        syy = syy / sum - sy * sy;
        sxy = sxy / sum - sx * sy;
        const double size = 0.5 * (sxx + syy), length = std::hypot(0.5 * (sxx - syy), sxy);
        if (!(size > 0) || length > longest * size)
            return failed;
        const double next = std::min(unweighted(size, weight), 1.5 * weight);
        if (next > widest || std::hypot(sx, sy) > 2)
            return failed;
        x += 2 * sx; // the weight halves the distance from its centre to the source's
        y += 2 * sy;
        if (std::fabs(next - sigma) < 0.005 * sigma)
            return {next / fwhm_to_sigma, unweighted(size - length, weight) / fwhm_to_sigma};
        sigma = next;
    }
    return failed;
}

/// Median of the most crowded stretch of +-15 %: a sample with up to half of wrong values keeps its mode.
double crowded_middle(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    std::size_t best = 0, best_n = 0;
    for (std::size_t i = 0, j = 0; i < values.size(); ++i) {
        while (j < values.size() && values[j] <= 1.35 * values[i])
            ++j;
        if (j - i > best_n) {
            best_n = j - i;
            best = i;
        }
    }
    return values[best + best_n / 2];
}

Widths find_widths_near(double middle, Image<const float> image, Sky sky, float saturation) {
    constexpr double narrowest = 1.4; // pixel
    constexpr float threshold = 8.0f, bright = 30.0f;
    constexpr std::size_t enough = 100, most_tried = 200;
    constexpr std::ptrdiff_t parts = 8, order[parts] = {3, 5, 1, 7, 0, 2, 4, 6};
    // Seen through Gaussian weights a Moffat profile, beta 2.5 to 4, is 5 to 10 % wider than its half maximum
    // says.
    constexpr double moffat = 0.93;
    const SkyAt at(image, sky);
    const Kernel kernel(middle);
    const Sharpness psf(narrowest);
    SharpTests tests(image);
    std::vector<double> widths, narrow;
    for (std::ptrdiff_t part : order) {
        const std::ptrdiff_t y0 = part * image.ny / parts, y1 = (part + 1) * image.ny / parts;
        if (y0 == y1)
            continue;
        std::vector<Maximum> maxima = find_maxima(image, sky, at, kernel, threshold, y0, y1).list;
        std::sort(maxima.begin(), maxima.end(), [](const Maximum& a, const Maximum& b) { return a.snr[4] > b.snr[4]; });
        std::size_t tried = 0;
        for (const Maximum& m : maxima) {
            const float level = m.level, noise = m.noise;
            bool usable = m.x > 0 && m.y > 0 && m.x + 1 < image.nx && m.y + 1 < image.ny;
            for (std::ptrdiff_t y = m.y - 1; y <= m.y + 1 && usable; ++y)
                for (std::ptrdiff_t x = m.x - 1; x <= m.x + 1 && usable; ++x) {
                    const float value = image(y, x);
                    usable = there(value) && !(value >= saturation);
                    if (value - level > 8 * noise)
                        tests.add(x, y, level, noise, 0.0f, 3.5f);
                }
            if (tests.any(psf) || !usable)
                continue;
            if (const Widths found = adaptive_widths(image, m, level, fwhm_to_sigma * middle); found.mean > 1.2) {
                widths.push_back(found.mean);
                if (m.snr[4] > bright) // noise makes every faint source long
                    narrow.push_back(found.narrow / found.mean);
            }
            if (++tried == most_tried)
                break;
        }
        if (widths.size() >= enough)
            break;
    }
    if (widths.size() < 3)
        return {};
    const double mean = moffat * crowded_middle(std::move(widths));
    return {mean, narrow.size() < 3 ? mean : mean * crowded_middle(std::move(narrow))};
}

} // namespace

Widths find_widths(Image<const float> image, Sky sky, float saturation) {
    constexpr double middle = 3.0; // pixel
    const Widths first = find_widths_near(middle, image, sky, saturation);
    // A filter of half the width misses the faint and measures a biased choice.
    return first.mean > 1.5 * middle ? find_widths_near(first.mean, image, sky, saturation) : first;
}

} // namespace fastack
