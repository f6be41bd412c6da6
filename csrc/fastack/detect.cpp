#include "fastack/detect.hpp"

#include "fastack/detect_blends.hpp"
#include "fastack/detect_filter.hpp"
#include "fastack/detect_sharp.hpp"

#include <algorithm>
#include <unordered_set>

namespace fastack {
namespace {

constexpr int fewest_on_plateau = 4;

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
    Finder(Image<const float> image, const SkyAt& at, const Kernel& kernel, Search search)
        : image_(image), at_(at), kernel_(kernel), search_(search), psf_(search.narrow), tests_(image),
          reach_(static_cast<std::ptrdiff_t>(std::ceil(search.fwhm))), near_(image, Deblender::reach * search.fwhm),
          deblender_(image, kernel, search.fwhm) {
        const double inner = 1.3 * search.fwhm + 0.5, outer = inner + 1.5;
        const auto r = static_cast<std::int32_t>(outer);
        for (std::int32_t y = -r; y <= r; ++y)
            for (std::int32_t x = -r; x <= r; ++x)
                if (const double square = x * x + y * y; square >= inner * inner && square <= outer * outer) {
                    ring_.push_back({x, y});
                    ring_offset_.push_back(y * image.stride + x);
                }
        ring_values_.resize(ring_.size());
        ring_reach_ = r;
        around_ = std::max<std::ptrdiff_t>(reach_, r + 1) + 1;
        apart_ = static_cast<std::ptrdiff_t>((Deblender::reach + 1) * search.fwhm) + 3;
    }

    /// Turns the maxima whose surroundings lie in rows before `end` into stars; those already seen stay as they are.
    void follow(const Maxima& maxima, std::ptrdiff_t end) {
        gaps_ = maxima.gaps;
        for (; seen_maxima_ < maxima.list.size(); ++seen_maxima_) {
            const Maximum& m = maxima.list[seen_maxima_];
            if (m.y + around_ >= end)
                break;
            if (saturated_star(m))
                continue;
            singles_.push_back(found_.size());
            add(star(m));
        }
        // all that lies near a star must be known before its pairs are sought
        for (; deblended_ < singles_.size(); ++deblended_) {
            const std::size_t i = singles_[deblended_];
            if (found_[i].y + static_cast<double>(around_ + apart_) >= static_cast<double>(end))
                break;
            if (found_[i].snr > deblend_snr && !(found_[i].flags & (sharp | saturated)))
                deblend(i);
        }
    }

    std::vector<Detection> finish(const Maxima& maxima) {
        follow(maxima, std::numeric_limits<std::int32_t>::max());
        std::erase_if(found_, [&](const Detection& d) { return !kept_[&d - found_.data()]; });
        std::sort(found_.begin(), found_.end(), [](const Detection& a, const Detection& b) {
            return a.flux != b.flux ? a.flux > b.flux : a.y != b.y ? a.y < b.y : a.x < b.x;
        });
        return std::move(found_);
    }

  private:
    static constexpr double sharp_margin = 1.2; ///< sharpness of a real star that is still a star's
    static constexpr float faint_peak = 15.0f;  ///< sigma
    static constexpr float bright_part = 0.5f;  ///< of a faint highest pixel, from which others are tested, too
    static constexpr float clear_pixel = 5.0f;  ///< sigma
    static constexpr float deblend_snr = 15.0f;

    void add(const Detection& d) {
        near_.add(d.x, d.y);
        found_.push_back(d);
        kept_.push_back(worth_keeping(d));
    }

    bool worth_keeping(const Detection& d) { return d.flags & (sharp | saturated) || stands_out(d); }

    Detection star(const Maximum& m) {
        const Vertex across = vertex(m.snr[3], m.snr[4], m.snr[5]), down = vertex(m.snr[1], m.snr[4], m.snr[7]);
        const double snr = m.snr[4] * across.gain * down.gain;
        return describe(m.x + across.shift, m.y + down.shift, snr, m.x, m.y, m.level, m.noise);
    }

    Detection describe(double x, double y, double snr, std::ptrdiff_t px, std::ptrdiff_t py, float sky, float noise) {
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
        test_beside(px, py, peak, sky, noise);
        test_core(px, py, sky, noise);
        const bool hit = tests_.any(psf_);
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

    /// Tests the highest pixel of the 3x3 about a maximum; if it is faint, any of those that noise alone does not make
    /// as bright: a track has several, each of them with its own noise. In bright sources not the noise but the
    /// difference between point-spread functions and Gaussians decides.
    void test_beside(std::ptrdiff_t px, std::ptrdiff_t py, float peak, float sky, float noise) {
        const bool faint = peak - sky < faint_peak * noise;
        const float clear = faint ? sky + std::max(clear_pixel * noise, bright_part * (peak - sky)) : peak;
        const Box core(image_, px, py, 1);
        for (std::ptrdiff_t v = core.y0; v < core.y1; ++v)
            for (std::ptrdiff_t u = core.x0; u < core.x1; ++u)
                if (image_(v, u) >= clear || image_(v, u) == peak)
                    tests_.add(u, v, sky, noise, shot(sky, noise), faint && image_(v, u) >= clear ? 3.0f : 3.5f);
    }

    /// Tests what the filter may have merged into one broad maximum: the brightest pixel within half the FWHM.
    void test_core(std::ptrdiff_t px, std::ptrdiff_t py, float sky, float noise) {
        const auto r = static_cast<std::ptrdiff_t>(0.5 * search_.fwhm);
        if (r < 2)
            return;
        const Box box(image_, px, py, r);
        Pixel top{static_cast<std::int32_t>(px), static_cast<std::int32_t>(py)};
        for (std::ptrdiff_t v = box.y0; v < box.y1; ++v)
            for (std::ptrdiff_t u = box.x0; u < box.x1; ++u)
                if (image_(v, u) > image_(top.y, top.x))
                    top = {static_cast<std::int32_t>(u), static_cast<std::int32_t>(v)};
        tests_.add(top.x, top.y, sky, noise, shot(sky, noise), 4.5f);
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
            add(describe(parts[k]));
            added = true;
        }
        if (added) {
            found_[index] = describe(parts[0]);
            kept_[index] = worth_keeping(found_[index]);
        }
    }

    Detection describe(const Part& p) {
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

    /// Pixels of the ring about (cx, cy) that are there, into `ring_values_`; their number.
    std::ptrdiff_t ring_there(std::ptrdiff_t cx, std::ptrdiff_t cy) {
        std::ptrdiff_t n = 0;
        for (const Pixel& p : ring_)
            if (const std::ptrdiff_t x = cx + p.x, y = cy + p.y;
                x >= 0 && y >= 0 && x < image_.nx && y < image_.ny && there(image_(y, x)))
                ring_values_[n++] = image_(y, x);
        return n;
    }

    /// Whether a detection rises above the ring about it, and not only above the sky's mesh: bumps of noise
    /// on the wing of a bright star, on a nebula or on a vignetted border do not.
    bool stands_out(const Detection& d) {
        const std::ptrdiff_t cx = std::lround(d.x), cy = std::lround(d.y);
        std::ptrdiff_t n = 0;
        if (!gaps_ && cx >= ring_reach_ && cy >= ring_reach_ && cx + ring_reach_ < image_.nx &&
            cy + ring_reach_ < image_.ny) {
            const float* middle = image_.row(cy) + cx;
            for (const std::ptrdiff_t offset : ring_offset_)
                ring_values_[n++] = middle[offset];
        } else {
            n = ring_there(cx, cy);
        }
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
        for (std::ptrdiff_t i = 0; i < n; ++i)
            below += ring_values_[i] < limit;
        return 2 * below > n;
    }

    Image<const float> image_;
    bool gaps_ = false; ///< whether pixels are missing
    const SkyAt& at_;
    const Kernel& kernel_;
    Search search_;
    Sharpness psf_;
    SharpTests tests_;
    std::ptrdiff_t reach_;
    std::ptrdiff_t around_, apart_; ///< rows below a maximum that tell what it is; further ones with stars in its light
    Neighbours near_;
    std::vector<Pixel> ring_;                 ///< about a star, relative to its pixel
    std::vector<std::ptrdiff_t> ring_offset_; ///< the same as places in the image
    std::ptrdiff_t ring_reach_;
    std::vector<float> ring_values_;
    Deblender deblender_;
    std::vector<Detection> beside_;
    std::vector<Detection> found_;
    std::vector<std::size_t> singles_; ///< those found as maxima of their own
    std::vector<char> kept_;           ///< whether each of those found is a star or a hit
    std::size_t seen_maxima_ = 0, deblended_ = 0;
    std::vector<Plateau> plateaus_;
    std::unordered_set<std::uint64_t> seen_;
};

/// The image's highest value, where at least four pixels of one maximum share it.
float plateau_level(Image<const float> image, const std::vector<Maximum>& maxima) {
    float top = -std::numeric_limits<float>::infinity();
    for (const Maximum& m : maxima)
        top = std::max(top, m.top);
    for (const Maximum& m : maxima) {
        if (m.top < top)
            continue;
        const Box box(image, m.x, m.y, 1);
        int n = 0;
        for (std::ptrdiff_t v = box.y0; v < box.y1; ++v)
            for (std::ptrdiff_t u = box.x0; u < box.x1; ++u)
                n += image(v, u) == top;
        if (n >= fewest_on_plateau)
            return top;
    }
    return std::numeric_limits<float>::infinity();
}

} // namespace

std::vector<Detection> detect_stars(Image<const float> image, Sky sky, Search search, BrightPixels* bright) {
    const SkyAt at(image, sky);
    const Kernel kernel(search.fwhm);
    const bool unknown = std::isnan(search.saturation);
    if (unknown)
        search.saturation = std::numeric_limits<float>::infinity();
    Finder finder(image, at, kernel, search);
    const Maxima maxima = find_maxima(image, sky, at, kernel, search.threshold, 0, image.ny, bright,
                                      [&](const Maxima& found, std::ptrdiff_t end) { finder.follow(found, end); });
    if (unknown)
        search.saturation = plateau_level(image, maxima.list);
    if (unknown && std::isfinite(search.saturation)) // all of them again, now that the level is known
        return Finder(image, at, kernel, search).finish(maxima);
    return finder.finish(maxima);
}

} // namespace fastack
