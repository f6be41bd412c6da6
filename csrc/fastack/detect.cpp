#include "fastack/detect.hpp"

#include "fastack/detect_filter.hpp"
#include "fastack/detect_sharp.hpp"

#include <algorithm>
#include <bit>
#include <unordered_set>

namespace fastack {
namespace {

/// Pixels at the saturation level that hang together (8 neighbours) with the one at (x, y).
struct Plateau {
    double x = 0, y = 0;
    std::ptrdiff_t n = 0;
    Pixel low{}, high{}; ///< corners of the box about it
};

Plateau flood(Image<const float> image, float level, std::ptrdiff_t x, std::ptrdiff_t y,
              std::unordered_set<std::uint64_t>& seen) {
    std::vector<Pixel> todo{{static_cast<std::int32_t>(x), static_cast<std::int32_t>(y)}};
    Plateau plateau{0, 0, 0, todo[0], todo[0]};
    seen.insert(key(x, y));
    while (!todo.empty()) {
        const Pixel p = todo.back();
        todo.pop_back();
        plateau.x += p.x;
        plateau.y += p.y;
        ++plateau.n;
        plateau.low = {std::min(plateau.low.x, p.x), std::min(plateau.low.y, p.y)};
        plateau.high = {std::max(plateau.high.x, p.x), std::max(plateau.high.y, p.y)};
        const Box box(image, p.x, p.y, 1);
        for (std::ptrdiff_t v = box.y0; v < box.y1; ++v)
            for (std::ptrdiff_t u = box.x0; u < box.x1; ++u)
                if (image(v, u) >= level && seen.insert(key(u, v)).second)
                    todo.push_back({static_cast<std::int32_t>(u), static_cast<std::int32_t>(v)});
    }
    plateau.x /= static_cast<double>(plateau.n);
    plateau.y /= static_cast<double>(plateau.n);
    return plateau;
}

/// Points in square cells, for neighbours within one cell's width.
class Neighbours {
  public:
    Neighbours(Image<const float> image, double cell)
        : cell_(std::max(cell, 8.0)),
          nx_(static_cast<std::ptrdiff_t>(static_cast<double>(image.nx) / cell_) + 1),
          ny_(static_cast<std::ptrdiff_t>(static_cast<double>(image.ny) / cell_) + 1), head_(nx_ * ny_, -1) {}

    /// Points are numbered in the order in which they are added.
    void add(double x, double y) {
        int& head = head_[row(y) * nx_ + column(x)];
        next_.push_back(head);
        head = static_cast<int>(next_.size()) - 1;
    }

    /// Calls `visit(index)` for all points in the cell of (x, y) and in the eight about it.
    template <class Visit> void about(double x, double y, Visit&& visit) const {
        const std::ptrdiff_t j = row(y), i = column(x);
        for (std::ptrdiff_t v = std::max<std::ptrdiff_t>(j - 1, 0); v < std::min(j + 2, ny_); ++v)
            for (std::ptrdiff_t u = std::max<std::ptrdiff_t>(i - 1, 0); u < std::min(i + 2, nx_); ++u)
                for (int k = head_[v * nx_ + u]; k >= 0; k = next_[k])
                    visit(k);
    }

  private:
    std::ptrdiff_t column(double x) const {
        return std::clamp<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(x / cell_), 0, nx_ - 1);
    }
    std::ptrdiff_t row(double y) const {
        return std::clamp<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(y / cell_), 0, ny_ - 1);
    }

    double cell_;
    std::ptrdiff_t nx_, ny_;
    std::vector<int> head_, next_;
};

/// From maxima of the filtered image to stars.
class Finder {
  public:
    /// `gaps`: whether pixels are missing.
    Finder(Image<const float> image, const SkyAt& at, const Kernel& kernel, Search search, bool gaps)
        : image_(image), gaps_(gaps), at_(at), kernel_(kernel), search_(search), psf_(search.narrow),
          reach_(static_cast<std::ptrdiff_t>(std::ceil(search.fwhm))), near_(image, pair_reach * search.fwhm) {}

    std::vector<Detection> run(const std::vector<Maximum>& maxima) {
        if (std::isnan(search_.saturation))
            search_.saturation = plateau_level(maxima);
        for (const Maximum& m : maxima)
            if (!saturated_star(m))
                found_.push_back(star(m));
        const std::size_t singles = found_.size();
        for (const Detection& d : found_)
            near_.add(d.x, d.y);
        for (std::size_t i = 0; i < singles; ++i)
            if (found_[i].snr > deblend_snr && !(found_[i].flags & (sharp | saturated)))
                deblend(i);
        std::erase_if(found_,
                      [&](const Detection& d) { return !(d.flags & (sharp | saturated)) && !stands_out(d); });
        std::sort(found_.begin(), found_.end(), [](const Detection& a, const Detection& b) {
            return a.flux != b.flux ? a.flux > b.flux : a.y != b.y ? a.y < b.y : a.x < b.x;
        });
        return std::move(found_);
    }

  private:
    static constexpr double sharp_margin = 1.2; ///< sharpness of a real star that is still a star's
    static constexpr float deblend_snr = 15.0f;
    static constexpr float asymmetry = 0.04f; ///< of a single star, over its height
    static constexpr double pair_reach = 2.4; ///< FWHM; farther neighbours have a maximum of their own
    static constexpr int fewest_on_plateau = 4;

    Detection star(const Maximum& m) const {
        const Vertex across = vertex(m.snr[3], m.snr[4], m.snr[5]),
                     down = vertex(m.snr[1], m.snr[4], m.snr[7]);
        const double snr = m.snr[4] * across.gain * down.gain;
        return describe(m.x + across.shift, m.y + down.shift, snr, m.x, m.y, m.level, m.noise);
    }

    Detection describe(double x, double y, double snr, std::ptrdiff_t px, std::ptrdiff_t py, float sky,
                       float noise) const {
        const double height = snr / std::sqrt(kernel_.norm); // in units of the noise
        float peak = -std::numeric_limits<float>::infinity();
        std::ptrdiff_t peak_x = px, peak_y = py;
        bool gap = false;
        const Box core(image_, px, py, 1);
        for (std::ptrdiff_t v = core.y0; v < core.y1; ++v)
            for (std::ptrdiff_t u = core.x0; u < core.x1; ++u)
                if (image_(v, u) > peak) {
                    peak = image_(v, u);
                    peak_x = u;
                    peak_y = v;
                }
        const Box window(image_, px, py, reach_);
        gap = window.x1 - window.x0 != 2 * reach_ + 1 || window.y1 - window.y0 != 2 * reach_ + 1;
        for (std::ptrdiff_t v = window.y0; v < window.y1 && !gap && gaps_; ++v)
            for (std::ptrdiff_t u = window.x0; u < window.x1; ++u)
                gap = gap || !there(image_(v, u));
        // The middle pixel, not the highest, which is a biased choice where the noise decides.
        const double dx = static_cast<double>(px) - x, dy = static_cast<double>(py) - y;
        const double part = kernel_.height(dx * dx + dy * dy);
        const double sharpness = (image_(py, px) - sky) / (noise * height * part);
        const double error = std::sqrt(std::max(0.0, 1 - part * part / kernel_.norm)) / (height * part);
        const bool hit =
            psf_.too_sharp(Vicinity(image_, peak_x, peak_y, sky, noise), shot(sky, noise), 3.5f) ||
            hit_in_core(px, py, sky, noise);
        std::uint16_t flags = 0;
        if (gap)
            flags |= edge;
        if (peak >= search_.saturation)
            flags |= saturated;
        if (sharpness > sharp_margin + 3 * error || hit)
            flags |= sharp;
        const double scale = noise * kernel_.flux() / std::sqrt(kernel_.norm);
        return {x,          y,   static_cast<float>(snr * scale), static_cast<float>(scale),
                peak - sky, sky, static_cast<float>(sharpness),   static_cast<float>(snr),
                flags};
    }

    /// Hits that the filter has merged into one broad maximum: the brightest pixel within half the FWHM.
    bool hit_in_core(std::ptrdiff_t px, std::ptrdiff_t py, float sky, float noise) const {
        const auto r = static_cast<std::ptrdiff_t>(0.5 * search_.fwhm);
        if (r < 2)
            return false;
        const Box box(image_, px, py, r);
        Pixel top{static_cast<std::int32_t>(px), static_cast<std::int32_t>(py)};
        for (std::ptrdiff_t v = box.y0; v < box.y1; ++v)
            for (std::ptrdiff_t u = box.x0; u < box.x1; ++u)
                if (image_(v, u) > image_(top.y, top.x))
                    top = {static_cast<std::int32_t>(u), static_cast<std::int32_t>(v)};
        return psf_.too_sharp(Vicinity(image_, top.x, top.y, sky, noise), shot(sky, noise), 4.5f);
    }

    static float shot(float sky, float noise) { return sky > noise ? noise / sky : 0.0f; }

    /// The image's highest value, where at least `fewest_on_plateau` pixels of one maximum share it.
    float plateau_level(const std::vector<Maximum>& maxima) const {
        float top = -std::numeric_limits<float>::infinity();
        for (const Maximum& m : maxima) {
            const Box box(image_, m.x, m.y, 1);
            for (std::ptrdiff_t v = box.y0; v < box.y1; ++v)
                for (std::ptrdiff_t u = box.x0; u < box.x1; ++u)
                    if (there(image_(v, u)))
                        top = std::max(top, image_(v, u));
        }
        for (const Maximum& m : maxima) {
            const Box box(image_, m.x, m.y, 1);
            int n = 0;
            for (std::ptrdiff_t v = box.y0; v < box.y1; ++v)
                for (std::ptrdiff_t u = box.x0; u < box.x1; ++u)
                    n += image_(v, u) == top;
            if (n >= fewest_on_plateau)
                return top;
        }
        return std::numeric_limits<float>::infinity();
    }

    /// Takes the maxima of a saturated star together; true where `m` is one of them.
    bool saturated_star(const Maximum& m) {
        const Box box(image_, m.x, m.y, 1);
        for (std::ptrdiff_t v = box.y0; v < box.y1; ++v)
            for (std::ptrdiff_t u = box.x0; u < box.x1; ++u) {
                if (!(image_(v, u) >= search_.saturation))
                    continue;
                if (seen_.count(key(u, v)))
                    return true;
                const Plateau plateau = flood(image_, search_.saturation, u, v, seen_);
                if (plateau.n < fewest_on_plateau)
                    return false; // a hot pixel, or a star that is saturated in its peak: the filter knows
                                  // better
                found_.push_back(star(m));
                found_.back().x = plateau.x;
                found_.back().y = plateau.y;
                found_.back().flags = static_cast<std::uint16_t>((found_.back().flags & ~sharp) | saturated);
                plateaus_.push_back(plateau);
                return true;
            }
        for (const Plateau& p : plateaus_)
            if (m.x >= p.low.x - reach_ && m.x <= p.high.x + reach_ && m.y >= p.low.y - reach_ &&
                m.y <= p.high.y + reach_)
                return true;
        return false;
    }

    /// Looks for a second peak beside a bright star in the less smoothed image, where pairs closer than the
    /// filter resolves stand apart.
    void deblend(std::size_t index) {
        const Detection main = found_[index]; // a copy: found_ grows
        const double narrow = std::max(0.5 * kernel_.sigma, 0.35);
        const auto half = static_cast<std::ptrdiff_t>(std::ceil(0.5 * search_.fwhm));
        const std::ptrdiff_t r = static_cast<std::ptrdiff_t>(std::ceil(pair_reach * search_.fwhm)) + 1,
                             n = 2 * r + 1;
        const std::ptrdiff_t cx = std::lround(main.x), cy = std::lround(main.y);
        if (cx < r + half || cy < r + half || cx + r + half >= image_.nx || cy + r + half >= image_.ny)
            return;
        if (!lopsided(index, cx, cy, r))
            return;
        float tap[32], sum = 0, square = 0;
        for (std::ptrdiff_t j = 0; j <= half; ++j) {
            tap[j] = static_cast<float>(std::exp(-0.5 * static_cast<double>(j * j) / (narrow * narrow)));
            sum += j ? 2 * tap[j] : tap[j];
        }
        for (std::ptrdiff_t j = -half; j <= half; ++j)
            square += tap[std::abs(j)] * tap[std::abs(j)] / (sum * sum);
        const float sky = main.sky, noise = at_.noise(cy, cx);
        std::vector<float> lines((n + 2 * half) * n), smooth(n * n);
        for (std::ptrdiff_t v = 0; v < n + 2 * half; ++v)
            for (std::ptrdiff_t u = 0; u < n; ++u) {
                float value = 0;
                for (std::ptrdiff_t j = -half; j <= half; ++j)
                    value += tap[std::abs(j)] * (image_(cy - r - half + v, cx - r + u + j) - sky);
                lines[v * n + u] = value / (sum * noise);
            }
        for (std::ptrdiff_t v = 0; v < n; ++v)
            for (std::ptrdiff_t u = 0; u < n; ++u) {
                float value = 0;
                for (std::ptrdiff_t j = -half; j <= half; ++j)
                    value += tap[std::abs(j)] * lines[(v + half + j) * n + u];
                smooth[v * n + u] = value / sum;
            }
        const auto at = [&](std::ptrdiff_t u, std::ptrdiff_t v) { return smooth[v * n + u]; };
        struct Peak {
            std::ptrdiff_t u, v;
            float height;
        };
        Peak top{r, r, -1};
        for (std::ptrdiff_t v = half; v < n - half; ++v)
            for (std::ptrdiff_t u = half; u < n - half; ++u)
                if (at(u, v) > top.height &&
                    std::hypot(static_cast<double>(u - r), static_cast<double>(v - r)) < search_.fwhm)
                    top = {u, v, at(u, v)};
        // A point-spread function is about symmetric: without the light of the pixel opposite, its centre in
        // between, a star beside the main one stands alone.
        const double centre_u =
            static_cast<double>(top.u) + vertex(at(top.u - 1, top.v), top.height, at(top.u + 1, top.v)).shift;
        const double centre_v =
            static_cast<double>(top.v) + vertex(at(top.u, top.v - 1), top.height, at(top.u, top.v + 1)).shift;
        std::vector<float> rest(n * n, 0.0f);
        for (std::ptrdiff_t v = 0; v < n; ++v)
            for (std::ptrdiff_t u = 0; u < n; ++u) {
                const double mu = 2 * centre_u - static_cast<double>(u),
                             mv = 2 * centre_v - static_cast<double>(v);
                if (mu < 0 || mv < 0 || mu >= static_cast<double>(n - 1) || mv >= static_cast<double>(n - 1))
                    continue;
                const auto iu = static_cast<std::ptrdiff_t>(mu), iv = static_cast<std::ptrdiff_t>(mv);
                const auto tu = static_cast<float>(mu - static_cast<double>(iu));
                const auto tv = static_cast<float>(mv - static_cast<double>(iv));
                rest[v * n + u] = at(u, v) - ((1 - tv) * ((1 - tu) * at(iu, iv) + tu * at(iu + 1, iv)) +
                                              tv * ((1 - tu) * at(iu, iv + 1) + tu * at(iu + 1, iv + 1)));
            }
        const auto alone = [&](std::ptrdiff_t u, std::ptrdiff_t v) { return rest[v * n + u]; };
        const auto photon = static_cast<double>(shot(sky, noise));
        std::vector<Detection> parts;
        for (std::ptrdiff_t v = 1; v < n - 1; ++v)
            for (std::ptrdiff_t u = 1; u < n - 1; ++u) {
                const float h = alone(u, v);
                const double error = square * std::sqrt(2 * (1 + photon * std::max(at(u, v), 0.0f)));
                if (h < 5 * error + asymmetry * top.height)
                    continue;
                const double apart =
                    std::hypot(static_cast<double>(u) - centre_u, static_cast<double>(v) - centre_v);
                if (apart < 0.9 * search_.fwhm || apart > pair_reach * search_.fwhm)
                    continue;
                if (h > alone(u - 1, v) && h >= alone(u + 1, v) && h > alone(u, v - 1) &&
                    h >= alone(u, v + 1) && h > alone(u - 1, v - 1) && h >= alone(u + 1, v + 1) &&
                    h > alone(u + 1, v - 1) && h >= alone(u - 1, v + 1))
                    parts.push_back(part_of(u, v, alone, cx - r, cy - r, narrow));
            }
        if (parts.empty())
            return;
        const Detection first = part_of(top.u, top.v, at, cx - r, cy - r, narrow);
        bool added = false;
        for (Detection& p : parts) {
            if (known(p.x, p.y, index))
                continue;
            p.flags |= blended;
            near_.add(p.x, p.y);
            found_.push_back(p);
            added = true;
        }
        if (!added)
            return;
        found_[index] = first;
        found_[index].flags |= blended;
    }

    /// Whether a pixel in reach of a star and not of a neighbour already found is much brighter than the place
    /// opposite, or the core broader than a star's: cheap, and true of pairs.
    bool lopsided(std::size_t index, std::ptrdiff_t cx, std::ptrdiff_t cy, std::ptrdiff_t r) {
        const Detection& main = found_[index];
        if (main.sharpness < 0.85f)
            return true;
        beside_.clear();
        near_.about(main.x, main.y, [&](int k) {
            if (k != static_cast<int>(index))
                beside_.push_back(k);
        });
        const auto explained = [&](std::ptrdiff_t x, std::ptrdiff_t y) {
            const auto squared = [&](const Detection& d) {
                const double dx = static_cast<double>(x) - d.x, dy = static_cast<double>(y) - d.y;
                return dx * dx + dy * dy;
            };
            const double reach = pair_reach * search_.fwhm + 1, own = search_.fwhm;
            return squared(main) > reach * reach || std::any_of(beside_.begin(), beside_.end(), [&](int k) {
                       return squared(found_[k]) < own * own;
                   });
        };
        const auto core = static_cast<float>(0.64 * search_.fwhm * search_.fwhm);
        const float least = 4 * at_.noise(cy, cx) + 0.5f * asymmetry * main.peak;
        // The point opposite (u, v) is (2 x - u, 2 y - v): for all pixels the same fraction of a pixel off.
        const double mx = 2 * main.x - static_cast<double>(cx), my = 2 * main.y - static_cast<double>(cy);
        const auto ix = static_cast<std::ptrdiff_t>(std::floor(mx)),
                   iy = static_cast<std::ptrdiff_t>(std::floor(my));
        const auto tx = static_cast<float>(mx - static_cast<double>(ix)),
                   ty = static_cast<float>(my - static_cast<double>(iy));
        if (ix < r || iy < r || ix + r + 1 >= image_.nx || iy + r + 1 >= image_.ny)
            return false;
        const float lit = main.sky + least;
        constexpr std::ptrdiff_t word = 32;
        std::uint32_t bits[word];
        for (std::ptrdiff_t left = -r; left <= r; left += word) {
            const std::ptrdiff_t width = std::min(word, r + 1 - left);
            for (std::ptrdiff_t top = -r; top <= r; top += word) {
                const std::ptrdiff_t height = std::min(word, r + 1 - top);
                rows().detect.lit(image_.row(cy + top) + cx + left, image_.stride, width, height, lit, bits);
                for (std::ptrdiff_t v = top; v < top + height; ++v) {
                    const auto v2 = static_cast<float>(v * v);
                    const auto half = v2 <= core ? static_cast<std::ptrdiff_t>(std::sqrt(core - v2)) : -1;
                    const float *here = image_.row(cy + v) + cx, *low = image_.row(iy - v) + ix,
                                *high = image_.row(iy - v + 1) + ix;
                    for (std::uint32_t left_over = bits[v - top]; left_over; left_over &= left_over - 1) {
                        const std::ptrdiff_t u = left + std::countr_zero(left_over);
                        if (u >= -half && u <= half)
                            continue;
                        const float opposite = (1 - ty) * ((1 - tx) * low[-u] + tx * low[1 - u]) +
                                               ty * ((1 - tx) * high[-u] + tx * high[1 - u]);
                        if (here[u] - opposite > least && !explained(cx + u, cy + v))
                            return true;
                    }
                }
            }
        }
        return false;
    }

    template <class At>
    Detection part_of(std::ptrdiff_t u, std::ptrdiff_t v, const At& at, std::ptrdiff_t x0, std::ptrdiff_t y0,
                      double narrow) const {
        const Vertex across = vertex(at(u - 1, v), at(u, v), at(u + 1, v));
        const Vertex down = vertex(at(u, v - 1), at(u, v), at(u, v + 1));
        // a Gaussian smoothed by a narrower one: its height falls by s^2 / (s^2 + n^2)
        const double s2 = kernel_.sigma * kernel_.sigma;
        const double height = at(u, v) * across.gain * down.gain * (s2 + narrow * narrow) / s2;
        Detection d =
            describe(static_cast<double>(x0 + u) + across.shift, static_cast<double>(y0 + v) + down.shift,
                     height * std::sqrt(kernel_.norm), x0 + u, y0 + v, at_.level(y0 + v, x0 + u),
                     at_.noise(y0 + v, x0 + u));
        return d;
    }

    /// Whether a detection other than `index` stands there already.
    bool known(double x, double y, std::size_t index) const {
        const double limit = 0.6 * search_.fwhm;
        bool found = false;
        near_.about(x, y, [&](int k) {
            const Detection& d = found_[k];
            found = found || (k != static_cast<int>(index) && std::hypot(d.x - x, d.y - y) < limit);
        });
        return found;
    }

    /// Whether a detection rises above the ring about it, and not only above the sky's mesh: bumps of noise
    /// on the wing of a bright star, on a nebula or on a vignetted border do not.
    bool stands_out(const Detection& d) {
        const std::ptrdiff_t cx = std::lround(d.x), cy = std::lround(d.y);
        const double inner = 1.3 * search_.fwhm + 0.5, outer = inner + 1.5;
        ring_.clear();
        const Box box(image_, cx, cy, static_cast<std::ptrdiff_t>(outer));
        for (std::ptrdiff_t v = box.y0; v < box.y1; ++v) {
            const double dy = static_cast<double>(v) - d.y;
            const double wide = outer * outer - dy * dy, narrow = inner * inner - dy * dy;
            if (!(wide > 0))
                continue;
            const double reach = std::sqrt(wide), gap = narrow > 0 ? std::sqrt(narrow) : 0;
            const auto left = std::max(box.x0, static_cast<std::ptrdiff_t>(std::ceil(d.x - reach))),
                       right = std::min(box.x1, static_cast<std::ptrdiff_t>(std::ceil(d.x + reach)));
            const auto from = std::clamp(static_cast<std::ptrdiff_t>(std::ceil(d.x - gap)), left, right),
                       to = std::clamp(static_cast<std::ptrdiff_t>(std::ceil(d.x + gap)), from, right);
            ring_.insert(ring_.end(), image_.row(v) + left, image_.row(v) + from);
            ring_.insert(ring_.end(), image_.row(v) + to, image_.row(v) + right);
        }
        const auto n = std::count_if(ring_.begin(), ring_.end(), there);
        if (n < 5)
            return true;
        // It does where snr + (margin - wing) sum > threshold sqrt(1 + photons wing), wing the ring's median above
        // the sky: up to the lower root of a quadratic equation. Counting the ring's pixels below it will do.
        const float noise = at_.noise(cy, cx);
        const double photons = static_cast<double>(shot(d.sky, noise)), sum = kernel_.sum();
        const double margin = 1.5 * std::sqrt(0.5 * M_PI / static_cast<double>(n));
        const double free = d.snr + margin * sum, least = search_.threshold;
        if (!(free > least))
            return false;
        const double half = free * sum + 0.5 * least * least * photons;
        const double root = std::sqrt(std::max(half * half - sum * sum * (free * free - least * least), 0.0));
        const auto limit = static_cast<float>(d.sky + noise * (half - root) / (sum * sum));
        const auto below = std::count_if(ring_.begin(), ring_.end(), [limit](float v) { return v < limit && there(v); });
        return 2 * below > n;
    }

    Image<const float> image_;
    bool gaps_;
    const SkyAt& at_;
    const Kernel& kernel_;
    Search search_;
    Sharpness psf_;
    std::ptrdiff_t reach_;
    Neighbours near_;
    std::vector<float> ring_;
    std::vector<int> beside_;
    std::vector<Detection> found_;
    std::vector<Plateau> plateaus_;
    std::unordered_set<std::uint64_t> seen_;
};

} // namespace

std::vector<Detection> detect_stars(Image<const float> image, Sky sky, Search search,
                                    std::vector<BrightPixel>* bright) {
    const SkyAt at(image, sky);
    const Kernel kernel(search.fwhm);
    const Maxima maxima = find_maxima(image, sky, at, kernel, search.threshold, 0, image.ny, bright);
    return Finder(image, at, kernel, search, maxima.gaps).run(maxima.list);
}

} // namespace fastack
