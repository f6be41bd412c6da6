#include "fastack/detect.hpp"

#include "fastack/background.hpp"
#include "rows/rows.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <unordered_set>

namespace fastack {
namespace {

constexpr double fwhm_to_sigma = 0.42466090014400953;

bool there(float v) {
    return std::isfinite(v);
}

/// The sky as `whiten` takes it: level and 1/noise of any row, and of any pixel.
class Whitener {
  public:
    /// For columns [x0, x1) of the image.
    Whitener(Image<const float> image, Sky sky, std::ptrdiff_t x0, std::ptrdiff_t x1)
        : x0_(x0), image_(image), level_mesh_(sky.level), inverse_(invert(sky)),
          inverse_mesh_{inverse_.data(), sky.noise.ny, sky.noise.nx, sky.noise.nx},
          level_(level_mesh_, image.ny, image.nx, x0, x1, Surface::Shape::cubic),
          scale_(inverse_mesh_, image.ny, image.nx, x0, x1, Surface::Shape::linear) {}

    Whitener(const Whitener&) = delete;
    Whitener& operator=(const Whitener&) = delete;

    /// Row y in units of the noise. Returns the number of missing pixels.
    int row(std::ptrdiff_t y, float* out) {
        level_.seek(y);
        scale_.seek(y);
        const float* w = level_.weights();
        const float weight[6] = {w[0], w[1], w[2], w[3], scale_.weights()[1], scale_.weights()[2]};
        return rows().detect.whiten(image_.row(y) + x0_, level_.rows(), scale_.rows(), weight, level_.width(),
                                    out);
    }

    /// Level and noise at column x of the row that was asked for last.
    float row_level(std::ptrdiff_t x) const { return sum(level_, x); }
    float row_noise(std::ptrdiff_t x) const { return 1.0f / sum(scale_, x); }

    float level(std::ptrdiff_t y, std::ptrdiff_t x) const { return level_.at(y, x); }
    float noise(std::ptrdiff_t y, std::ptrdiff_t x) const { return 1.0f / scale_.at(y, x); }

  private:
    float sum(const Surface& surface, std::ptrdiff_t x) const {
        float value = 0;
        for (int k = 0; k < 4; ++k)
            value += surface.weights()[k] * surface.rows()[k][x - x0_];
        return value;
    }

    /// 1/noise. A cell without noise (a constant patch) takes the median of the others; where none has any,
    /// the rounding of float32 stands in for it.
    static std::vector<float> invert(Sky sky) {
        std::vector<float> positive;
        float highest = 0;
        for (std::ptrdiff_t i = 0; i < sky.noise.ny * sky.noise.nx; ++i) {
            highest = std::max(highest, std::fabs(sky.level.data[i]));
            if (sky.noise.data[i] > 0)
                positive.push_back(sky.noise.data[i]);
        }
        float middle = highest > 0 ? 1e-6f * highest : 1e-6f;
        if (!positive.empty()) {
            std::nth_element(positive.begin(), positive.begin() + positive.size() / 2, positive.end());
            middle = std::max(middle, positive[positive.size() / 2]);
        }
        std::vector<float> inverse(sky.noise.ny * sky.noise.nx);
        for (std::size_t i = 0; i < inverse.size(); ++i)
            inverse[i] = 1.0f / (sky.noise.data[i] > 1e-3f * middle ? sky.noise.data[i] : middle);
        return inverse;
    }

    std::ptrdiff_t x0_;
    Image<const float> image_, level_mesh_;
    std::vector<float> inverse_;
    Image<const float> inverse_mesh_;
    Surface level_, scale_;
};

/// A Gaussian of the point-spread function's width, cut where 1 % of the signal-to-noise ratio is lost.
struct Kernel {
    double sigma;
    int radius;
    float tap[largest_radius + 1]; ///< scaled so that the squares of the two-dimensional filter sum up to 1
    float square[largest_radius + 1]; ///< tap^2
    double norm;                      ///< sum of the squares of the filter of central height 1

    explicit Kernel(double fwhm) : sigma(fwhm_to_sigma * fwhm) {
        radius = std::clamp(static_cast<int>(std::ceil(0.85 * fwhm)), 1, largest_radius);
        double sum = 0;
        for (int j = -radius; j <= radius; ++j)
            sum += std::exp(-j * j / (sigma * sigma));
        norm = sum * sum;
        for (int j = 0; j <= radius; ++j) {
            tap[j] = static_cast<float>(std::exp(-0.5 * j * j / (sigma * sigma)) / std::sqrt(sum));
            square[j] = tap[j] * tap[j];
        }
    }

    double height(double r2) const { return std::exp(-0.5 * r2 / (sigma * sigma)); }
    double flux() const { return 2 * M_PI * sigma * sigma; } ///< of height 1
    double sum() const {                                     ///< of the two-dimensional filter
        double line = tap[0];
        for (int j = 1; j <= radius; ++j)
            line += 2 * tap[j];
        return line * line;
    }
};

struct Maximum {
    std::int32_t x, y;
    float snr[9]; ///< of the 3x3 about it
};

/// Adds the pixels of row y, columns [x0, x1), that stand out by themselves; `row` holds them in units of the
/// noise, as the whitener has just written them.
void find_bright(const Whitener& white, std::ptrdiff_t y, std::ptrdiff_t x0,
                 std::ptrdiff_t x1, const float* row, std::uint8_t* count, std::vector<BrightPixel>& out) {
    constexpr float least = 6.0f; // sigma
    rows().detect.count_above(row, x1 - x0, least, count);
    for (std::ptrdiff_t start = 0; start < x1 - x0; start += threshold_block) {
        if (!count[start / threshold_block])
            continue;
        for (std::ptrdiff_t i = start; i < std::min(start + threshold_block, x1 - x0); ++i)
            if (row[i] > least)
                out.push_back({static_cast<std::int32_t>(x0 + i), static_cast<std::int32_t>(y),
                               white.row_level(x0 + i), white.row_noise(x0 + i)});
    }
}

/// Runs the matched filter down one strip of columns in a rolling band of rows, and collects the maxima.
class Strip {
  public:
    /// `bright`: list to which the bright pixels of the strip are added, or null.
    Strip(Image<const float> image, Sky sky, const Kernel& kernel, float threshold, std::ptrdiff_t x0,
          std::ptrdiff_t x1, std::vector<BrightPixel>* bright)
        : image_(image), kernel_(kernel), threshold_(threshold), bright_(bright), x0_(x0), x1_(x1),
          left_(std::max<std::ptrdiff_t>(x0 - 1, 0)), right_(std::min(x1 + 1, image.nx)),
          width_(right_ - left_), white_(image, sky, cut(left_ - kernel.radius), cut(right_ + kernel.radius)),
          band_(2 * kernel.radius + 1), row_(width_ + 2 * kernel.radius), light_(band_ * width_),
          weight_(band_ * width_), missing_(band_, 0), whole_(width_), snr_(3 * (width_ + 2)),
          zero_(width_, 0.0f), count_(width_ / threshold_block + 1), lit_(width_ / threshold_block + 1) {
        std::fill(row_.begin(), row_.end(), 0.0f);
        for (std::ptrdiff_t x = cut(left_ - kernel_.radius); x < cut(right_ + kernel_.radius); ++x)
            row_[x - left_ + kernel_.radius] = 1.0f;
        rows().detect.filter_x[kernel_.radius](row_.data() + kernel_.radius, kernel_.square, width_,
                                               whole_.data());
    }

    /// Maxima in rows [y0, y1).
    void run(std::ptrdiff_t y0, std::ptrdiff_t y1, std::vector<Maximum>& out) {
        std::fill(snr_.begin(), snr_.end(), none);
        const std::ptrdiff_t r = kernel_.radius, first = std::max<std::ptrdiff_t>(y0 - 1, 0);
        for (std::ptrdiff_t y = std::max<std::ptrdiff_t>(first - r, 0); y < std::min(first + r, image_.ny);
             ++y)
            filter_row(y);
        for (std::ptrdiff_t y = first; y < std::min(y1 + 1, image_.ny); ++y) {
            if (y + r < image_.ny)
                filter_row(y + r);
            filter_column(y);
            if (y > y0)
                collect(y - 1, out);
            rows().detect.count_above(snr(y), width_, threshold_, count_.data());
        }
        if (y1 == image_.ny) {
            std::fill_n(snr(y1), width_, none);
            collect(y1 - 1, out);
        }
    }

  private:
    static constexpr float none = -std::numeric_limits<float>::infinity();
    static constexpr float least_weight = 0.25f; ///< part of the filter that must lie on pixels

    std::ptrdiff_t cut(std::ptrdiff_t x) const { return std::clamp<std::ptrdiff_t>(x, 0, image_.nx); }
    std::ptrdiff_t place(std::ptrdiff_t y) const { return y % band_; }
    /// With room for one value on either side, which stays below every threshold.
    float* snr(std::ptrdiff_t y) { return snr_.data() + (y % 3) * (width_ + 2) + 1; }

    void filter_row(std::ptrdiff_t y) {
        const std::ptrdiff_t r = kernel_.radius, from = cut(left_ - r), to = cut(right_ + r);
        float* start = row_.data() + from - (left_ - r);
        std::fill(row_.data(), start, 0.0f);
        std::fill(start + (to - from), row_.data() + row_.size(), 0.0f);
        missing_[place(y)] = white_.row(y, start);
        if (bright_)
            find_bright(white_, y, x0_, x1_, start - from + x0_, lit_.data(), *bright_);
        rows().detect.filter_x[r](row_.data() + r, kernel_.tap, width_, light_.data() + place(y) * width_);
        if (missing_[place(y)]) {
            rows().detect.present(image_.row(y) + from, to - from, start);
            rows().detect.filter_x[r](row_.data() + r, kernel_.square, width_,
                                      weight_.data() + place(y) * width_);
        }
    }

    /// Where pixels are missing, sum(k d) / sqrt(sum(k^2)) over those that are there.
    void filter_column(std::ptrdiff_t y) {
        const std::ptrdiff_t r = kernel_.radius;
        const float *light[2 * largest_radius + 1], *weight[2 * largest_radius + 1];
        bool gaps = y < r || y + r >= image_.ny;
        for (std::ptrdiff_t j = -r; j <= r; ++j) {
            const bool inside = y + j >= 0 && y + j < image_.ny;
            light[j + r] = inside ? light_.data() + place(y + j) * width_ : zero_.data();
            weight[j + r] = !inside                  ? zero_.data()
                            : missing_[place(y + j)] ? weight_.data() + place(y + j) * width_
                                                     : whole_.data();
            gaps = gaps || (inside && missing_[place(y + j)]);
        }
        float* out = snr(y);
        rows().detect.filter_y[r](light, kernel_.tap, width_, out);
        if (gaps) {
            rows().detect.filter_y[r](weight, kernel_.square, width_, row_.data());
            for (std::ptrdiff_t i = 0; i < width_; ++i)
                out[i] = normalise(out[i], row_[i]);
            return;
        }
        for (std::ptrdiff_t i = 0; i < std::min(cut(r) - left_, width_); ++i)
            out[i] = normalise(out[i], whole_[i]);
        for (std::ptrdiff_t i = std::max<std::ptrdiff_t>(cut(image_.nx - r) - left_, 0); i < width_; ++i)
            if (left_ + i >= r)
                out[i] = normalise(out[i], whole_[i]);
    }

    static float normalise(float value, float weight) {
        return weight < least_weight ? none : weight < 0.9999f ? value / std::sqrt(weight) : value;
    }

    /// Maxima of row y; `count_` is of that row, and the rows above and below are ready.
    void collect(std::ptrdiff_t y, std::vector<Maximum>& out) {
        const float *above = snr(y + 2), *here = snr(y), *below = snr(y + 1);
        if (y == 0)
            std::fill_n(snr(2), width_, none);
        for (std::ptrdiff_t block = 0; block * threshold_block < width_; ++block) {
            if (!count_[block])
                continue;
            const std::ptrdiff_t begin = std::max(block * threshold_block, x0_ - left_);
            const std::ptrdiff_t end = std::min((block + 1) * threshold_block, x1_ - left_);
            if (begin >= end)
                continue;
            rows().detect.peaks(above + begin, here + begin, below + begin, end - begin, threshold_, peak_);
            for (std::ptrdiff_t i = begin; i < end; ++i) {
                if (!peak_[i - begin])
                    continue;
                Maximum m{static_cast<std::int32_t>(left_ + i), static_cast<std::int32_t>(y), {}};
                for (int k = 0; k < 3; ++k) {
                    m.snr[k] = above[i - 1 + k];
                    m.snr[3 + k] = here[i - 1 + k];
                    m.snr[6 + k] = below[i - 1 + k];
                }
                out.push_back(m);
            }
        }
    }

    Image<const float> image_;
    const Kernel& kernel_;
    float threshold_;
    std::vector<BrightPixel>* bright_;
    std::ptrdiff_t x0_, x1_;              ///< columns whose maxima are wanted
    std::ptrdiff_t left_, right_, width_; ///< the same with a neighbour on either side
    Whitener white_;
    std::ptrdiff_t band_;
    std::vector<float> row_; ///< one whitened row, with the filter's radius on either side
    std::vector<float> light_,
        weight_;               ///< rows filtered in x: the pixels, and the squared taps on present pixels
    std::vector<int> missing_; ///< missing pixels in each row of the band
    std::vector<float> whole_; ///< what `weight_` is for a row without missing pixels
    std::vector<float> snr_;   ///< three rows
    std::vector<float> zero_;
    std::vector<std::uint8_t> count_, lit_; ///< pixels above the thresholds of `snr_` and of bright pixels
    std::uint8_t peak_[threshold_block];
};

std::vector<Maximum> find_maxima(Image<const float> image, Sky sky, const Kernel& kernel, float threshold,
                                 std::ptrdiff_t y0, std::ptrdiff_t y1, std::ptrdiff_t strip,
                                 std::vector<BrightPixel>* bright = nullptr) {
    std::vector<Maximum> maxima;
    for (std::ptrdiff_t x0 = 0; x0 < image.nx; x0 += strip)
        Strip(image, sky, kernel, threshold, x0, std::min(x0 + strip, image.nx), bright).run(y0, y1, maxima);
    return maxima;
}

/// Vertex of the parabola through three logarithms: exact for a Gaussian.
struct Vertex {
    double shift, gain; ///< pixel; height over the middle value
};

Vertex vertex(float left, float middle, float right) {
    const float floor = 0.05f * middle;
    const double a = std::log(std::max(left, floor) / middle), c = std::log(std::max(right, floor) / middle);
    const double bend = -(a + c);
    if (!(bend > 1e-6))
        return {0.0, 1.0};
    const double shift = std::clamp(0.5 * (c - a) / bend, -0.6, 0.6);
    return {shift, std::exp(0.5 * bend * shift * shift)};
}

/// Whether a point-spread function of the width `fwhm`, or a broader one, cannot make the pixel: it is too
/// bright for its neighbours. Of a Gaussian sampled anywhere, the mean of the two neighbours on an axis is at
/// least g = exp(-1/(2 sigma^2)) of the pixel, that of the two pixels next to a pair at least g^2 of the
/// pair's, and four pixels in a square obey I(0,0) I(1,1) = I(1,0) I(0,1). A Moffat profile is further on the
/// safe side.
class Sharpness {
  public:
    explicit Sharpness(double fwhm) {
        const double sigma = fwhm_to_sigma * safety * fwhm;
        next_ = static_cast<float>(std::exp(-0.5 / (sigma * sigma)));
    }

    /// `z(dx, dy)`: neighbours in units of the sky's noise, NaN where missing. `shot`: variance a unit of z.
    /// `limit`: sigma.
    template <class Z> bool too_sharp(Z&& z, float shot, float limit) const {
        const float here = z(0, 0);
        if (!there(here))
            return false;
        const Test test{shot, limit};
        float sum = 0, n = 0;
        for (int axis = 0; axis < 2; ++axis) {
            const int dx = axis == 0, dy = axis == 1;
            const float near[2] = {z(-dx, -dy), z(dx, dy)};
            for (const float value : near)
                if (there(value)) {
                    sum += value;
                    n += 1;
                }
            if (test.exceeds(here, 1, 0.5f * (near[0] + near[1]), 2, next_))
                return true;
            for (int side = 0; side < 2; ++side) {
                const int u = side ? dx : -dx, v = side ? dy : -dy;
                if (!alike(here, near[side]))
                    continue;
                const float pair = 0.5f * (here + near[side]);
                const float along = 0.5f * (near[1 - side] + z(2 * u, 2 * v));
                const float across =
                    0.25f * (z(dy, dx) + z(-dy, -dx) + z(u + dy, v + dx) + z(u - dy, v - dx));
                if (test.exceeds(pair, 2, along, 2, next_ * next_) || test.exceeds(pair, 2, across, 4, next_))
                    return true;
            }
        }
        for (const int u : {-1, 1})
            for (const int v : {-1, 1})
                if (test.corner(here, z(u, 0), z(0, v), z(u, v)))
                    return true;
        return n > 2 && test.exceeds(here, 1, sum / n, n, next_);
    }

    /// The same of a pixel beside hit ones, which `z` gives as NaN: against the mean of what is left of its
    /// four neighbours.
    template <class Z> bool too_bright(Z&& z, float shot, float limit) const {
        const float here = z(0, 0);
        float sum = 0, n = 0;
        for (const float near : {z(-1, 0), z(1, 0), z(0, -1), z(0, 1)})
            if (there(near)) {
                sum += near;
                n += 1;
            }
        return n == 0 || Test{shot, limit}.exceeds(here, 1, sum / n, n, next_);
    }

  private:
    static constexpr double safety =
        0.9; ///< smallest local width over the frame's: seeing, ellipticity, focus
    static constexpr float mismatch = 0.1f; ///< of a real profile's core against a Gaussian

    static constexpr float companion =
        0.4f; ///< part of a pixel's light that makes its neighbour one of a pair
    /// Smallest I(0,0) I(1,1) / (I(1,0) I(0,1)): that of an ellipticity of 0.4 at 45 degrees and a FWHM
    /// of 1.8.
    static constexpr float corner_part = 0.4f;

    /// Of one hit or one star; a star's pixel next to a much brighter hit is not judged together with it.
    static bool alike(float here, float mate) { return mate > companion * here && here > companion * mate; }

    struct Test {
        float shot, limit;

        float variance(float z) const { return 1 + shot * std::max(z, 0.0f); }

        /// Whether `here`, a mean of n pixels, exceeds `near` / ratio, a mean of m. False where one is NaN.
        bool exceeds(float here, float n, float near, float m, float ratio) const {
            const float excess = (1 - mismatch) * here - near / ratio;
            if (!(excess > 0))
                return false;
            return excess * excess >
                   limit * limit * (variance(here) / n + variance(near) / (m * ratio * ratio));
        }

        /// Whether the fourth pixel of a square is too dark for the other three.
        bool corner(float here, float beside, float below, float across) const {
            if (!alike(here, beside) || !alike(here, below))
                return false;
            const float b = corner_part * beside / here, c = corner_part * below / here;
            const float excess = b * below - across;
            if (!(excess > 0))
                return false;
            const float spread = variance(across) + c * c * variance(beside) + b * b * variance(below) +
                                 b * b * c * c / (corner_part * corner_part) * variance(here);
            return excess * excess > limit * limit * spread;
        }
    };

    float next_;
};

/// Neighbours of a pixel, above the sky in units of the noise; NaN outside the image.
struct Vicinity {
    Image<const float> image;
    std::ptrdiff_t x, y;
    float sky, noise;

    float operator()(std::ptrdiff_t dx, std::ptrdiff_t dy) const {
        const auto u = static_cast<std::size_t>(x + dx), v = static_cast<std::size_t>(y + dy);
        if (u >= static_cast<std::size_t>(image.nx) || v >= static_cast<std::size_t>(image.ny))
            return std::numeric_limits<float>::quiet_NaN();
        return (image(y + dy, x + dx) - sky) / noise;
    }
};

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

/// A square of pixels, cut at the image's border.
struct Box {
    std::ptrdiff_t x0, x1, y0, y1;

    Box(Image<const float> image, std::ptrdiff_t x, std::ptrdiff_t y, std::ptrdiff_t r)
        : x0(std::max<std::ptrdiff_t>(x - r, 0)), x1(std::min(x + r + 1, image.nx)),
          y0(std::max<std::ptrdiff_t>(y - r, 0)), y1(std::min(y + r + 1, image.ny)) {}
};

/// Pixels at the saturation level that hang together (8 neighbours) with the one at (x, y).
struct Plateau {
    double x = 0, y = 0;
    std::ptrdiff_t n = 0;
    Pixel low{}, high{}; ///< corners of the box about it
};

std::uint64_t key(std::ptrdiff_t x, std::ptrdiff_t y) {
    return static_cast<std::uint64_t>(y) << 32 | static_cast<std::uint32_t>(x);
}

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
    Finder(Image<const float> image, const Whitener& white, const Kernel& kernel, Search search)
        : image_(image), white_(white), kernel_(kernel), search_(search), psf_(search.narrow),
          reach_(static_cast<std::ptrdiff_t>(std::ceil(search.fwhm))), near_(image, 2 * search.fwhm) {}

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
        return describe(m.x + across.shift, m.y + down.shift, snr, m.x, m.y);
    }

    Detection describe(double x, double y, double snr, std::ptrdiff_t px, std::ptrdiff_t py) const {
        const float sky = white_.level(py, px), noise = white_.noise(py, px);
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
        for (std::ptrdiff_t v = window.y0; v < window.y1 && !gap; ++v)
            for (std::ptrdiff_t u = window.x0; u < window.x1; ++u)
                gap = gap || !there(image_(v, u));
        // The middle pixel, not the highest, which is a biased choice where the noise decides.
        const double dx = static_cast<double>(px) - x, dy = static_cast<double>(py) - y;
        const double part = kernel_.height(dx * dx + dy * dy);
        const double sharpness = (image_(py, px) - sky) / (noise * height * part);
        const double error = std::sqrt(std::max(0.0, 1 - part * part / kernel_.norm)) / (height * part);
        const bool hit =
            psf_.too_sharp(Vicinity{image_, peak_x, peak_y, sky, noise}, shot(sky, noise), 3.5f) ||
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
        return psf_.too_sharp(Vicinity{image_, top.x, top.y, sky, noise}, shot(sky, noise), 4.5f);
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
        if (!lopsided(main, cx, cy, r))
            return;
        float tap[32], sum = 0, square = 0;
        for (std::ptrdiff_t j = 0; j <= half; ++j) {
            tap[j] = static_cast<float>(std::exp(-0.5 * static_cast<double>(j * j) / (narrow * narrow)));
            sum += j ? 2 * tap[j] : tap[j];
        }
        for (std::ptrdiff_t j = -half; j <= half; ++j)
            square += tap[std::abs(j)] * tap[std::abs(j)] / (sum * sum);
        const float sky = main.sky, noise = white_.noise(cy, cx);
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

    /// Whether a pixel within r of a star is much brighter than the place opposite, or the core broader than
    /// a star's: cheap, and true of pairs.
    bool lopsided(const Detection& main, std::ptrdiff_t cx, std::ptrdiff_t cy, std::ptrdiff_t r) const {
        if (main.sharpness < 0.85f)
            return true;
        const auto core = static_cast<float>(0.64 * search_.fwhm * search_.fwhm);
        const float least = 4 * white_.noise(cy, cx) + 0.5f * asymmetry * main.peak;
        // The point opposite (u, v) is (2 x - u, 2 y - v): for all pixels the same fraction of a pixel off.
        const double mx = 2 * main.x - static_cast<double>(cx), my = 2 * main.y - static_cast<double>(cy);
        const auto ix = static_cast<std::ptrdiff_t>(std::floor(mx)),
                   iy = static_cast<std::ptrdiff_t>(std::floor(my));
        const auto tx = static_cast<float>(mx - static_cast<double>(ix)),
                   ty = static_cast<float>(my - static_cast<double>(iy));
        if (ix < r || iy < r || ix + r + 1 >= image_.nx || iy + r + 1 >= image_.ny)
            return false;
        for (std::ptrdiff_t v = -r; v <= r; ++v) {
            const float *here = image_.row(cy + v) + cx, *low = image_.row(iy - v) + ix,
                        *high = image_.row(iy - v + 1) + ix;
            if (!any_above(here - r, 2 * r + 1, main.sky + least))
                continue;
            for (std::ptrdiff_t u = -r; u <= r; ++u) {
                if (static_cast<float>(u * u + v * v) <= core || !(here[u] > main.sky + least))
                    continue;
                const float opposite = (1 - ty) * ((1 - tx) * low[-u] + tx * low[1 - u]) +
                                       ty * ((1 - tx) * high[-u] + tx * high[1 - u]);
                if (here[u] - opposite > least)
                    return true;
            }
        }
        return false;
    }

    static bool any_above(const float* x, std::ptrdiff_t n, float limit) {
        int above = 0;
        for (std::ptrdiff_t i = 0; i < n; ++i)
            above |= x[i] > limit;
        return above;
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
                     height * std::sqrt(kernel_.norm), x0 + u, y0 + v);
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
        const float noise = white_.noise(cy, cx);
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
    const Whitener& white_;
    const Kernel& kernel_;
    Search search_;
    Sharpness psf_;
    std::ptrdiff_t reach_;
    Neighbours near_;
    std::vector<float> ring_;
    std::vector<Detection> found_;
    std::vector<Plateau> plateaus_;
    std::unordered_set<std::uint64_t> seen_;
};

/// Sigma of a Gaussian whose second moment under a weight of that sigma is `moment`.
double unweighted(double moment, double weight) {
    const double inverse = 1 / moment - 1 / (weight * weight);
    return inverse > 0 ? std::sqrt(1 / inverse) : 2 * weight;
}

/// Width of a source by its second moments under a Gaussian weight of the same width (Bernstein & Jarvis
/// 2002, AJ 123, 583, section 3.1); NaN where that does not converge or the source is long.
Widths adaptive_widths(Image<const float> image, const Maximum& m, float sky, float noise, double start) {
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
        double across[64], down[64];
        for (std::ptrdiff_t j = -r; j <= r; ++j) {
            const double dx = static_cast<double>(cx + j) - x, dy = static_cast<double>(cy + j) - y;
            across[j + r] = std::exp(-0.5 * dx * dx / (weight * weight));
            down[j + r] = std::exp(-0.5 * dy * dy / (weight * weight));
        }
        double sum = 0, sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0;
        for (std::ptrdiff_t v = -r; v <= r; ++v)
            for (std::ptrdiff_t u = -r; u <= r; ++u) {
                const double value = (image(cy + v, cx + u) - sky) / noise * across[u + r] * down[v + r];
                const double dx = static_cast<double>(cx + u) - x, dy = static_cast<double>(cy + v) - y;
                sum += value;
                sx += value * dx;
                sy += value * dy;
                sxx += value * dx * dx;
                syy += value * dy * dy;
                sxy += value * dx * dy;
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

} // namespace

namespace {

Widths find_widths_near(double middle, Image<const float> image, Sky sky, float saturation) {
    constexpr double narrowest = 1.4; // pixel
    constexpr float threshold = 8.0f, bright = 30.0f;
    constexpr std::size_t enough = 100, most_tried = 200;
    constexpr std::ptrdiff_t parts = 8, order[parts] = {3, 5, 1, 7, 0, 2, 4, 6};
    // Seen through Gaussian weights a Moffat profile, beta 2.5 to 4, is 5 to 10 % wider than its half maximum
    // says.
    constexpr double moffat = 0.93;
    const Whitener white(image, sky, 0, 0);
    const Kernel kernel(middle);
    const Sharpness psf(narrowest);
    std::vector<double> widths, narrow;
    for (std::ptrdiff_t part : order) {
        const std::ptrdiff_t y0 = part * image.ny / parts, y1 = (part + 1) * image.ny / parts;
        if (y0 == y1)
            continue;
        std::vector<Maximum> maxima = find_maxima(image, sky, kernel, threshold, y0, y1, image.nx);
        std::sort(maxima.begin(), maxima.end(),
                  [](const Maximum& a, const Maximum& b) { return a.snr[4] > b.snr[4]; });
        std::size_t tried = 0;
        for (const Maximum& m : maxima) {
            const float level = white.level(m.y, m.x), noise = white.noise(m.y, m.x);
            const Vicinity z{image, m.x, m.y, level, noise};
            bool usable = true;
            for (int v = -1; v <= 1 && usable; ++v)
                for (int u = -1; u <= 1 && usable; ++u) {
                    const Vicinity about{image, m.x + u, m.y + v, level, noise};
                    usable = there(z(u, v)) && !(z(u, v) * noise + level >= saturation) &&
                             !(z(u, v) > 8 && psf.too_sharp(about, 0.0f, 3.5f));
                }
            if (!usable)
                continue;
            if (const Widths found = adaptive_widths(image, m, level, noise, fwhm_to_sigma * middle);
                found.mean > 1.2) {
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

std::vector<Detection> detect_stars(Image<const float> image, Sky sky, Search search, std::ptrdiff_t strip,
                                    std::vector<BrightPixel>* bright) {
    const Whitener white(image, sky, 0, 0);
    const Kernel kernel(search.fwhm);
    return Finder(image, white, kernel, search)
        .run(find_maxima(image, sky, kernel, search.threshold, 0, image.ny, strip, bright));
}

std::vector<BrightPixel> bright_pixels(Image<const float> image, Sky sky) {
    Whitener white(image, sky, 0, image.nx);
    std::vector<BrightPixel> bright;
    std::vector<float> row(image.nx);
    std::vector<std::uint8_t> count(image.nx / threshold_block + 1);
    for (std::ptrdiff_t y = 0; y < image.ny; ++y) {
        white.row(y, row.data());
        find_bright(white, y, 0, image.nx, row.data(), count.data(), bright);
    }
    return bright;
}

std::vector<Pixel> find_hits(Image<const float> image, Span<const BrightPixel> bright, Hits how) {
    constexpr float core_limit = 4.0f, wing_limit = 2.0f, wing_noise = 3.5f;
    using Bright = BrightPixel;
    const Sharpness psf(how.narrow);
    float top = -std::numeric_limits<float>::infinity();
    for (const Bright& p : bright)
        top = std::max(top, image(p.y, p.x));
    const float full = std::isnan(how.saturation) ? top : how.saturation;
    const auto shot = [&](const Bright& p) {
        const float variance =
            std::isnan(how.shot) ? (p.sky > p.noise ? p.noise * p.noise / p.sky : 0.0f) : how.shot;
        return variance / p.noise;
    };
    std::unordered_set<std::uint64_t> seen;
    std::vector<Bright> hits;
    for (const Bright& p : bright) {
        const Vicinity z{image, p.x, p.y, p.sky, p.noise};
        if (!psf.too_sharp(z, shot(p), core_limit))
            continue;
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
        if (const Vicinity about{image, p.x, p.y, p.sky, p.noise}; middle_of_25(about) > 1.0f)
            continue; // on a star, whose pixels are not the hit's wings
        const Box box(image, p.x, p.y, 1);
        for (std::ptrdiff_t v = box.y0; v < box.y1; ++v)
            for (std::ptrdiff_t u = box.x0; u < box.x1; ++u) {
                const float here = (image(v, u) - p.sky) / p.noise;
                if (!(here > wing_noise) || image(v, u) >= full || seen.count(key(u, v)))
                    continue;
                const Vicinity about{image, u, v, p.sky, p.noise};
                const auto z = [&](int dx, int dy) {
                    return seen.count(key(u + dx, v + dy)) ? std::numeric_limits<float>::quiet_NaN()
                                                           : about(dx, dy);
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
