#include "fastack/detect.hpp"

#include "fastack/detect_blends.hpp"
#include "fastack/detect_filter.hpp"
#include "fastack/detect_sharp.hpp"

#include <algorithm>
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
        : cell_(std::max(cell, 8.0)), nx_(static_cast<std::ptrdiff_t>(static_cast<double>(image.nx) / cell_) + 1),
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
          reach_(static_cast<std::ptrdiff_t>(std::ceil(search.fwhm))), near_(image, Deblender::reach * search.fwhm),
          deblender_(image, kernel, search.fwhm) {
        const double inner = 1.3 * search.fwhm + 0.5, outer = inner + 1.5;
        const auto half = [](double radius, std::ptrdiff_t y) { // pixels on either side of the middle one, -1: none
            const double square = radius * radius - static_cast<double>(y * y);
            return square > 0 ? static_cast<std::ptrdiff_t>(std::sqrt(square)) : -1;
        };
        for (auto y = -static_cast<std::ptrdiff_t>(outer); y <= static_cast<std::ptrdiff_t>(outer); ++y) {
            const std::ptrdiff_t wide = half(outer, y), gap = half(inner, y);
            if (gap < 0) {
                ring_.push_back({y, -wide, wide + 1});
            } else if (gap < wide) {
                ring_.push_back({y, -wide, -gap});
                ring_.push_back({y, gap + 1, wide + 1});
            }
        }
    }

    std::vector<Detection> run(const std::vector<Maximum>& maxima) {
        if (std::isnan(search_.saturation))
            search_.saturation = plateau_level(maxima);
        for (std::size_t i = 0; i < maxima.size(); ++i) {
            if (i + ahead < maxima.size())
                prefetch(image_, maxima[i + ahead].x, maxima[i + ahead].y, 2 * reach_);
            if (!saturated_star(maxima[i]))
                add(star(maxima[i]));
        }
        const std::size_t singles = found_.size();
        for (const Detection& d : found_)
            near_.add(d.x, d.y);
        for (std::size_t i = 0; i < singles; ++i)
            if (found_[i].snr > deblend_snr && !(found_[i].flags & (sharp | saturated)))
                deblend(i);
        std::erase_if(found_, [&](const Detection& d) { return !kept_[&d - found_.data()]; });
        std::sort(found_.begin(), found_.end(), [](const Detection& a, const Detection& b) {
            return a.flux != b.flux ? a.flux > b.flux : a.y != b.y ? a.y < b.y : a.x < b.x;
        });
        return std::move(found_);
    }

  private:
    static constexpr std::size_t ahead = 4;     ///< stars whose pixels are asked for beforehand
    static constexpr double sharp_margin = 1.2; ///< sharpness of a real star that is still a star's
    static constexpr float faint_peak = 15.0f;  ///< sigma
    static constexpr float bright_part = 0.5f;  ///< of a faint highest pixel, from which others are tested, too
    static constexpr float clear_pixel = 5.0f;  ///< sigma
    static constexpr float deblend_snr = 15.0f;
    static constexpr int fewest_on_plateau = 4;

    void add(const Detection& d) {
        found_.push_back(d);
        kept_.push_back(worth_keeping(d));
    }

    bool worth_keeping(const Detection& d) const { return d.flags & (sharp | saturated) || stands_out(d); }

    Detection star(const Maximum& m) const {
        const Vertex across = vertex(m.snr[3], m.snr[4], m.snr[5]), down = vertex(m.snr[1], m.snr[4], m.snr[7]);
        const double snr = m.snr[4] * across.gain * down.gain;
        return describe(m.x + across.shift, m.y + down.shift, snr, m.x, m.y, m.level, m.noise);
    }

    Detection describe(double x, double y, double snr, std::ptrdiff_t px, std::ptrdiff_t py, float sky,
                       float noise) const {
        const double height = snr / std::sqrt(kernel_.norm); // in units of the noise
        float peak = -std::numeric_limits<float>::infinity();
        bool gap = false;
        const Box core(image_, px, py, 1);
        for (std::ptrdiff_t v = core.y0; v < core.y1; ++v)
            for (std::ptrdiff_t u = core.x0; u < core.x1; ++u)
                peak = std::max(peak, there(image_(v, u)) ? image_(v, u) : peak);
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
        const bool hit = hit_beside(px, py, peak, sky, noise) || hit_in_core(px, py, sky, noise);
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

    /// Whether the highest pixel of the 3x3 about a maximum is a hit; if it is faint, whether any of those is that
    /// noise alone does not make as bright: a track has several, each of them with its own noise. In bright sources not
    /// the noise but the difference between point-spread functions and Gaussians decides.
    bool hit_beside(std::ptrdiff_t px, std::ptrdiff_t py, float peak, float sky, float noise) const {
        const bool faint = peak - sky < faint_peak * noise;
        const float clear = faint ? sky + std::max(clear_pixel * noise, bright_part * (peak - sky)) : peak;
        const Box core(image_, px, py, 1);
        for (std::ptrdiff_t v = core.y0; v < core.y1; ++v)
            for (std::ptrdiff_t u = core.x0; u < core.x1; ++u)
                if ((image_(v, u) >= clear || image_(v, u) == peak) &&
                    psf_.too_sharp(Vicinity(image_, u, v, sky, noise), shot(sky, noise),
                                   faint && image_(v, u) >= clear ? 3.0f : 3.5f))
                    return true;
        return false;
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
                Detection whole = star(m);
                whole.x = plateau.x;
                whole.y = plateau.y;
                whole.flags = static_cast<std::uint16_t>((whole.flags & ~sharp) | saturated);
                add(whole);
                plateaus_.push_back(plateau);
                return true;
            }
        for (const Plateau& p : plateaus_)
            if (m.x >= p.low.x - reach_ && m.x <= p.high.x + reach_ && m.y >= p.low.y - reach_ &&
                m.y <= p.high.y + reach_)
                return true;
        return false;
    }

    /// Adds the stars that the filter has merged with this one.
    void deblend(std::size_t index) {
        const Detection star = found_[index]; // a copy: found_ grows
        beside_.clear();
        near_.about(star.x, star.y, [&](int k) {
            if (k != static_cast<int>(index))
                beside_.push_back(found_[k]);
        });
        const float noise = at_.noise(std::lround(star.y), std::lround(star.x));
        const std::vector<Part>& parts = deblender_.parts(star, noise, beside_);
        bool added = false;
        for (std::size_t k = 1; k < parts.size(); ++k) {
            if (known(parts[k].x, parts[k].y, index))
                continue;
            near_.add(parts[k].x, parts[k].y);
            add(describe(parts[k]));
            added = true;
        }
        if (added) {
            found_[index] = describe(parts[0]);
            kept_[index] = worth_keeping(found_[index]);
        }
    }

    Detection describe(const Part& p) const {
        Detection d = describe(p.x, p.y, p.snr, p.px, p.py, at_.level(p.py, p.px), at_.noise(p.py, p.px));
        d.flags |= blended;
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
    bool stands_out(const Detection& d) const {
        const std::ptrdiff_t cx = std::lround(d.x), cy = std::lround(d.y);
        /// Calls `count(pixels, n)` for each run of the ring's pixels.
        const auto along_ring = [&](auto&& count) {
            for (const Run& run : ring_) {
                const std::ptrdiff_t y = cy + run.y, from = std::max<std::ptrdiff_t>(cx + run.from, 0),
                                     to = std::min(cx + run.to, image_.nx);
                if (y >= 0 && y < image_.ny && from < to)
                    count(image_.row(y) + from, to - from);
            }
        };
        std::ptrdiff_t n = 0;
        along_ring([&](const float* x, std::ptrdiff_t some) { n += gaps_ ? std::count_if(x, x + some, there) : some; });
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
        std::ptrdiff_t below = 0;
        along_ring([&](const float* x, std::ptrdiff_t some) {
            for (std::ptrdiff_t i = 0; i < some; ++i)
                below += (x[i] < limit) & (x[i] >= std::numeric_limits<float>::lowest());
        });
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
    struct Run {
        std::ptrdiff_t y, from, to; ///< relative to the star's pixel
    };
    std::vector<Run> ring_; ///< about a star
    Deblender deblender_;
    std::vector<Detection> beside_;
    std::vector<Detection> found_;
    std::vector<char> kept_; ///< whether each of those found is a star or a hit
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
