#include "fastack/detect.hpp"

#include "fastack/detect_sharp.hpp"

#include <unordered_set>

namespace fastack {
namespace {

/// Median of the 5x5 pixels about one.
float middle_of_25(const Vicinity& z) {
    float values[25];
    int n = 0;
    for (int dy = -2; dy <= 2; ++dy)
        for (int dx = -2; dx <= 2; ++dx)
            if (const float value = z(dx, dy); there(value))
                values[n++] = value;
    std::nth_element(values, values + n / 2, values + n);
    return values[n / 2];
}

} // namespace

std::vector<Pixel> find_hits(Image<const float> image, Span<const BrightPixel> bright, Hits how) {
    constexpr float wing_limit = 2.0f, wing_noise = 3.5f;
    using Bright = BrightPixel;
    const Sharpness psf(how.narrow);
    const auto shot = [&](const Bright& p) {
        const float variance = std::isnan(how.shot) ? (p.sky > p.noise ? p.noise * p.noise / p.sky : 0.0f) : how.shot;
        return variance / p.noise;
    };
    std::unordered_set<std::uint64_t> seen;
    std::vector<Bright> hits;
    std::vector<Bright> steep;
    SharpTests tests(image);
    float top = -std::numeric_limits<float>::infinity();
    for (const Bright& p : bright) {
        if (const Bright* next = &p + 8; next < bright.end())
            prefetch(image, next->x, next->y, 2);
        top = std::max(top, image(p.y, p.x));
        tests.add(p.x, p.y, p.sky, p.noise, shot(p), hit_limit);
        if (const Bright* last = &p + 1; tests.full() || last == bright.end()) {
            const Bright* first = last - tests.size();
            tests.run(psf, [&](int i) { steep.push_back(first[i]); });
        }
    }
    const float full = std::isnan(how.saturation) ? top : how.saturation;
    for (const Bright& p : steep) {
        const Box box(image, p.x, p.y, 2);
        int at_top = 0;
        for (std::ptrdiff_t v = box.y0; v < box.y1; ++v)
            for (std::ptrdiff_t u = box.x0; u < box.x1; ++u)
                at_top += image(v, u) >= full;
        if (at_top >= 4) // the edge of a saturated star is as steep as a hit
            continue;
        hits.push_back(p);
        seen.insert(key(p.x, p.y));
    }
    // Wings: what hangs on a hit and is too bright for those of its neighbours that are not hit.
    for (std::size_t i = 0; i < hits.size(); ++i) {
        const Bright p = hits[i];
        if (middle_of_25(Vicinity(image, p.x, p.y, p.sky, p.noise)) > 1.0f)
            continue; // on a star, whose pixels are not the hit's wings
        const Box box(image, p.x, p.y, 1);
        for (std::ptrdiff_t v = box.y0; v < box.y1; ++v)
            for (std::ptrdiff_t u = box.x0; u < box.x1; ++u) {
                const float here = (image(v, u) - p.sky) / p.noise;
                if (!(here > wing_noise) || image(v, u) >= full || seen.count(key(u, v)))
                    continue;
                const Vicinity about(image, u, v, p.sky, p.noise);
                const auto z = [&](int dx, int dy) {
                    return seen.count(key(u + dx, v + dy)) ? std::numeric_limits<float>::quiet_NaN() : about(dx, dy);
                };
                // A star next to a hit has more light about it than the rest of a hit has.
                int lit = 0;
                for (int dy = -1; dy <= 1; ++dy)
                    for (int dx = -1; dx <= 1; ++dx)
                        lit += (dx || dy) && z(dx, dy) > std::max(0.25f * here, 2.0f);
                if (lit > 1 || !psf.too_bright(z, shot(p), wing_limit))
                    continue;
                seen.insert(key(u, v));
                hits.push_back({static_cast<std::int32_t>(u), static_cast<std::int32_t>(v), p.sky, p.noise});
            }
    }
    std::vector<Pixel> pixels;
    pixels.reserve(hits.size());
    for (const Bright& p : hits)
        pixels.push_back({p.x, p.y});
    std::sort(pixels.begin(), pixels.end(),
              [](const Pixel& a, const Pixel& b) { return a.y != b.y ? a.y < b.y : a.x < b.x; });
    return pixels;
}

} // namespace fastack
