#include "fastack/detect_filter.hpp"

#include "fastack/detect_sharp.hpp"

#include <algorithm>
#include <bit>
#include <limits>
#include <utility>

namespace fastack {
namespace {

using std::ptrdiff_t;

constexpr ptrdiff_t pad = 16; // floats: a line of the cache

/// Rows of equal length on borders of 64 bytes, with room for one pad before each.
class Band {
  public:
    Band(ptrdiff_t rows, ptrdiff_t width)
        : stride_((width + pad - 1) / pad * pad + 2 * pad), data_(rows * stride_ + pad, 0.0f) {
        const auto at = reinterpret_cast<std::uintptr_t>(data_.data()) / sizeof(float);
        first_ = data_.data() + (pad - at % pad) % pad + pad;
    }
    Band(const Band&) = delete;
    Band& operator=(const Band&) = delete;

    float* operator[](ptrdiff_t row) { return first_ + row * stride_; }
    ptrdiff_t stride() const { return stride_; }

  private:
    ptrdiff_t stride_;
    std::vector<float> data_;
    float* first_;
};

/// The sky in one row of an image at a time, and what no pixel of a block is darker than.
class SkyRows {
  public:
    SkyRows(Image<const float> image, Sky sky, const SkyAt& at)
        : level_(sky.level, image.ny, image.nx, 0, image.nx, Surface::Shape::cubic),
          scale_(at.inverse_mesh(), image.ny, image.nx, 0, image.nx, Surface::Shape::linear),
          blocks_((image.nx + threshold_block - 1) / threshold_block),
          step_(quarter(Cells{image.nx, sky.level.nx}.width(), 16)),
          few_rows_(quarter(Cells{image.ny, sky.level.ny}.width(), 8)),
          few_level_(sky.level, image.ny, image.nx, 0, blocks_ * threshold_block + 1, Surface::Shape::cubic, step_),
          few_scale_(at.inverse_mesh(), image.ny, image.nx, 0, blocks_ * threshold_block + 1, Surface::Shape::linear,
                     step_),
          samples_(2 * few_level_.width()), lowest_(blocks_), faintest_(blocks_) {}

    void seek(ptrdiff_t y) {
        level_.seek(y);
        scale_.seek(y);
    }
    float level(ptrdiff_t x) const { return level_.value(x); }
    float noise(ptrdiff_t x) const { return 1.0f / scale_.value(x); }
    void render_level(float* out) const {
        rows().background.blend(level_.rows(), level_.weights(), level_.width(), out);
    }

    /// A level and a noise of each block of row y that no pixel's is below; they serve some rows at once.
    void bound(ptrdiff_t y) {
        if (y / few_rows_ == bounded_)
            return;
        bounded_ = y / few_rows_;
        sample(few_level_);
        for (ptrdiff_t b = 0; b < blocks_; ++b) {
            const auto [low, high] = range(b);
            // An extremum between two samples lies beyond them by less than half of their range.
            lowest_[b] = low - 0.5f * (high - low);
        }
        sample(few_scale_);
        for (ptrdiff_t b = 0; b < blocks_; ++b) {
            const auto [low, high] = range(b);
            faintest_[b] = 1.0f / (high + 0.5f * (high - low));
        }
    }
    const std::vector<float>& lowest() const { return lowest_; }
    const std::vector<float>& faintest() const { return faintest_; }

  private:
    /// The largest power of 2 up to `most` that is at most a quarter of a cell.
    static ptrdiff_t quarter(double cell, ptrdiff_t most) {
        while (most > 1 && 4 * static_cast<double>(most) > cell)
            most /= 2;
        return most;
    }

    void sample(Surface& surface) {
        for (int k = 0; k < 2; ++k) {
            surface.seek((bounded_ + k) * few_rows_);
            rows().background.blend(surface.rows(), surface.weights(), surface.width(),
                                    samples_.data() + k * surface.width());
        }
    }

    std::pair<float, float> range(ptrdiff_t block) const {
        const ptrdiff_t in_block = threshold_block / step_;
        const float *one = samples_.data() + block * in_block, *two = one + samples_.size() / 2;
        float low = std::min(one[0], two[0]), high = std::max(one[0], two[0]);
        for (ptrdiff_t i = 1; i <= in_block; ++i) {
            low = std::min(low, std::min(one[i], two[i]));
            high = std::max(high, std::max(one[i], two[i]));
        }
        return {low, high};
    }

    Surface level_, scale_;
    ptrdiff_t blocks_;
    ptrdiff_t step_, few_rows_;     ///< between samples
    Surface few_level_, few_scale_; ///< in every `step_`th column
    std::vector<float> samples_;    ///< of one of them, in two rows
    std::vector<float> lowest_, faintest_;
    ptrdiff_t bounded_ = -1;
};

/// Runs the filter down an image, four rows at a time, in a rolling band that the second-level cache holds. The image
/// is filtered as it stands; level and noise of the sky, which hardly change under the filter, are asked for at the
/// maxima only.
class Sweep {
  public:
    Sweep(Image<const float> image, Sky sky, const SkyAt& at, const Kernel& kernel, float threshold,
          BrightPixels* bright)
        : image_(image), kernel_(kernel), threshold_(threshold), bright_(bright), sky_(image, sky, at),
          pedestal_(at.level(image.ny / 2, image.nx / 2)), line_sum_(static_cast<float>(kernel.line())),
          sum_(static_cast<float>(kernel.sum())), depth_(room_for(2 * kernel.radius + 2 * filter_rows)),
          blocks_((image.nx + threshold_block - 1) / threshold_block), entered_(depth_), cleaned_(depth_, image.nx),
          weight_(depth_, image.nx), lines_(filter_rows, image.nx), weights_(filter_rows, image.nx),
          filtered_(kept, image.nx), spare_(4, image.nx), filter_bound_(depth_ * blocks_),
          bright_bound_(depth_ * blocks_), never_(blocks_, infinity), lit_(depth_ * blocks_), above_(kept * blocks_),
          counts_(blocks_), tests_(image), psf_(bright ? bright->widest : 1.0) {
        std::fill_n(spare_[scratch], image.nx, 1.0f);
        filter_weight(spare_[scratch], spare_[whole]);
    }

    Maxima run(ptrdiff_t y0, ptrdiff_t y1, const Follow& follow) {
        const ptrdiff_t r = kernel_.radius, first = std::max<ptrdiff_t>(y0 - 1, 0), last = std::min(y1 + 1, image_.ny);
        for (ptrdiff_t y = first - r; y < first + r; ++y)
            enter(y);
        std::fill_n(filtered_[slot(first - 1)] - pad, filtered_.stride(), -infinity);
        ptrdiff_t next = y0; // row whose maxima are collected next
        for (ptrdiff_t y = first; y < last; y += filter_rows) {
            for (ptrdiff_t k = 0; k < filter_rows; ++k)
                enter(y + r + k);
            filter(y, std::min<ptrdiff_t>(filter_rows, last - y));
            const bool end = y + filter_rows >= last;
            if (end)
                std::fill_n(filtered_[slot(last)] - pad, filtered_.stride(), -infinity);
            for (const ptrdiff_t stop = end ? y1 : std::min(y1, y + filter_rows - 1); next < stop; ++next)
                collect(next);
            if (follow)
                follow(found_, next);
        }
        if (bright_)
            finish_bright();
        return std::move(found_);
    }

  private:
    static constexpr ptrdiff_t kept = 2 * filter_rows; ///< filtered rows
    static_assert(std::has_single_bit(static_cast<unsigned>(kept)));
    static constexpr float infinity = std::numeric_limits<float>::infinity();
    static constexpr float bright_limit = 6.0f;  ///< sigma
    static constexpr float least_weight = 0.25f; ///< part of the filter that must lie on pixels
    enum Spare { whole, level, scratch, zeros };

    struct Line {
        const float* pixels;
        int missing; ///< all of them where the row is outside of the image
    };

    static ptrdiff_t room_for(int rows) { return static_cast<ptrdiff_t>(std::bit_ceil(static_cast<unsigned>(rows))); }
    ptrdiff_t place(ptrdiff_t y) const { return y & (depth_ - 1); }
    ptrdiff_t slot(ptrdiff_t y) const { return y & (kept - 1); }
    bool inside(ptrdiff_t y) const { return y >= 0 && y < image_.ny; }

    void set_border(float* row, float left, float right) const {
        std::fill_n(row - kernel_.radius, kernel_.radius, left);
        std::fill_n(row + image_.nx, kernel_.radius, right);
    }

    void filter_weight(float* present, float* out) {
        set_border(present, 0.0f, 0.0f);
        rows().detect.filter_x[kernel_.radius](present, kernel_.square, image_.nx, never_.data(), out, counts_.data());
    }

    /// Looks at a row for the first time: may it hold bright pixels, are all of its pixels there?
    void enter(ptrdiff_t y) {
        Line& line = entered_[place(y)];
        float* own = cleaned_[place(y)];
        if (!inside(y)) {
            line = {own, static_cast<int>(image_.nx)};
            sky_.seek(std::clamp<ptrdiff_t>(y, 0, image_.ny - 1));
            sky_.render_level(own);
            return;
        }
        sky_.bound(y);
        const float *lowest = sky_.lowest().data(), *faintest = sky_.faintest().data();
        float* __restrict__ filter_bound = &filter_bound_[place(y) * blocks_];
        float* __restrict__ bright_bound = &bright_bound_[place(y) * blocks_];
        const float sum = sum_, pedestal = pedestal_, threshold = threshold_;
        for (ptrdiff_t b = 0; b < blocks_; ++b) {
            filter_bound[b] = sum * (lowest[b] - pedestal) + threshold * faintest[b];
            bright_bound[b] = lowest[b] + bright_limit * faintest[b];
        }
        line = {image_.row(y), rows().detect.scan(image_.row(y), image_.nx, bright_bound, &lit_[place(y) * blocks_])};
        if (!line.missing)
            return;
        found_.gaps = true;
        sky_.seek(y);
        sky_.render_level(own);
        rows().detect.fill(image_.row(y), image_.nx, own, spare_[scratch]);
        filter_weight(spare_[scratch], weight_[place(y)]);
        line.pixels = own;
    }

    /// Rows y to y + n - 1.
    void filter(ptrdiff_t y, ptrdiff_t n) {
        const ptrdiff_t r = kernel_.radius, nx = image_.nx;
        const float *in[2 * largest_radius + filter_rows], *weight[2 * largest_radius + filter_rows];
        bool gaps = false;
        for (ptrdiff_t j = 0; j < 2 * r + filter_rows; ++j) {
            const Line& line = entered_[place(y - r + j)];
            in[j] = line.pixels;
            weight[j] = !inside(y - r + j) ? spare_[zeros] : line.missing ? weight_[place(y - r + j)] : spare_[whole];
            gaps = gaps || (line.missing && j < 2 * r + n);
        }
        const float* next[filter_rows];
        for (ptrdiff_t k = 0; k < filter_rows; ++k)
            next[k] = image_.row(std::min(y + r + filter_rows + k, image_.ny - 1));
        rows().detect.filter_y[r](in, kernel_.tap, -pedestal_ * line_sum_, nx, lines_[0], lines_.stride(), next);
        if (gaps)
            rows().detect.filter_y[r](weight, kernel_.square, 0.0f, nx, weights_[0], weights_.stride(), next);
        for (ptrdiff_t k = 0; k < n; ++k) {
            sky_.seek(y + k);
            set_border(lines_[k], line_sum_ * (sky_.level(0) - pedestal_),
                       line_sum_ * (sky_.level(nx - 1) - pedestal_));
            float* out = filtered_[slot(y + k)];
            const float* bound = &filter_bound_[place(y + k) * blocks_];
            std::uint8_t* above = &above_[slot(y + k) * blocks_];
            rows().detect.filter_x[r](lines_[k], kernel_.tap, nx, bound, out, above);
            out[-1] = out[nx] = -infinity;
            if (gaps) {
                sky_.render_level(spare_[level]);
                rows().detect.normalise(weights_[k], spare_[level], pedestal_, sum_, least_weight, nx, bound, out,
                                        above);
            } else {
                normalise_border(out, bound, above);
            }
        }
    }

    /// What `normalise` does, for the columns that the filter does not reach from within.
    void normalise_border(float* out, const float* bound, std::uint8_t* above) {
        const ptrdiff_t r = kernel_.radius, nx = image_.nx;
        for (ptrdiff_t x = 0; x < nx; x = x + 1 == r ? std::max(nx - r, r) : x + 1) {
            const float sky = sum_ * (sky_.level(x) - pedestal_), weight = spare_[whole][x];
            out[x] = weight < least_weight ? -infinity
                     : weight < 0.9999f    ? sky + (out[x] - sky) / std::sqrt(weight)
                                           : out[x];
            above[x / threshold_block] |= out[x] > bound[x / threshold_block];
        }
    }

    /// Maxima and bright pixels of row y, whose neighbours are filtered.
    void collect(ptrdiff_t y) {
        const float *above = filtered_[slot(y - 1)], *here = filtered_[slot(y)], *below = filtered_[slot(y + 1)];
        sky_.seek(y);
        for (ptrdiff_t block = 0; block < blocks_; ++block) {
            const ptrdiff_t begin = block * threshold_block, end = std::min(begin + threshold_block, image_.nx);
            if (bright_ && lit_[place(y) * blocks_ + block])
                collect_bright(y, begin, end);
            if (!above_[slot(y) * blocks_ + block])
                continue;
            const int n = rows().detect.peaks(above + begin, here + begin, below + begin, end - begin,
                                              filter_bound_[place(y) * blocks_ + block], places_);
            for (int i = 0; i < n; ++i) {
                const ptrdiff_t x = begin + places_[i];
                const float sky = sky_.level(x), noise = sky_.noise(x);
                const float zero = sum_ * (sky - pedestal_);
                if (!(here[x] - zero > threshold_ * noise))
                    continue;
                Maximum m{static_cast<std::int32_t>(x), static_cast<std::int32_t>(y), sky, noise, top(x, y), {}};
                for (int k = 0; k < 3; ++k) {
                    m.snr[k] = (above[x - 1 + k] - zero) / noise;
                    m.snr[3 + k] = (here[x - 1 + k] - zero) / noise;
                    m.snr[6 + k] = (below[x - 1 + k] - zero) / noise;
                }
                found_.list.push_back(m);
            }
        }
    }

    float top(ptrdiff_t x, ptrdiff_t y) const {
        float highest = -infinity;
        for (ptrdiff_t v = std::max<ptrdiff_t>(y - 1, 0); v < std::min(y + 2, image_.ny); ++v)
            for (ptrdiff_t u = std::max<ptrdiff_t>(x - 1, 0); u < std::min(x + 2, image_.nx); ++u)
                highest = there(image_(v, u)) ? std::max(highest, image_(v, u)) : highest;
        return highest;
    }

    void collect_bright(ptrdiff_t y, ptrdiff_t begin, ptrdiff_t end) {
        const int n = rows().detect.mark(image_.row(y) + begin, end - begin,
                                         bright_bound_[place(y) * blocks_ + begin / threshold_block], places_);
        for (int i = 0; i < n; ++i) {
            const ptrdiff_t x = begin + places_[i];
            const float value = image_(y, x), sky = sky_.level(x), noise = sky_.noise(x);
            if (value - sky > bright_limit * noise && there(value))
                add_bright({static_cast<std::int32_t>(x), static_cast<std::int32_t>(y), sky, noise}, value);
        }
    }

    void add_bright(const BrightPixel& p, float value) {
        if (std::isinf(bright_->widest)) {
            bright_->list.push_back(p);
            return;
        }
        if (value > top_value_) {
            top_value_ = value;
            top_ = p;
        }
        untested_[tests_.size()] = p;
        // without the light's own photons, which only make the test milder; rounding must not lose one
        tests_.add(p.x, p.y, p.sky, p.noise, 0.0f, 0.999f * hit_limit);
        if (tests_.full())
            test_bright();
    }

    void test_bright() {
        tests_.run(psf_, [&](int i) { bright_->list.push_back(untested_[i]); });
    }

    /// The last pixels, and the highest of all if it is not among those that were found.
    void finish_bright() {
        test_bright();
        if (top_value_ == -infinity)
            return;
        const auto at = std::lower_bound(
            bright_->list.begin(), bright_->list.end(), top_,
            [](const BrightPixel& a, const BrightPixel& b) { return a.y != b.y ? a.y < b.y : a.x < b.x; });
        if (at == bright_->list.end() || at->x != top_.x || at->y != top_.y)
            bright_->list.insert(at, top_);
    }

    Image<const float> image_;
    const Kernel& kernel_;
    float threshold_;
    BrightPixels* bright_;
    SkyRows sky_;
    float pedestal_;       ///< taken off in the filter, which rounds less then
    float line_sum_, sum_; ///< of the filter in one and in two dimensions
    ptrdiff_t depth_;      ///< rows of the image in the band, a power of 2
    ptrdiff_t blocks_;     ///< of `threshold_block` pixels in a row
    std::vector<Line> entered_;
    Band cleaned_, weight_; ///< rows with missing pixels: the sky in their place, and what they weigh (filtered in x)
    Band lines_, weights_;  ///< filtered in y
    Band filtered_;         ///< in both directions; rows in place `slot(y)`
    Band spare_;
    std::vector<float> filter_bound_, bright_bound_, never_; ///< by block; of rows in place `place(y)`
    std::vector<std::uint8_t> lit_, above_, counts_;         ///< blocks with pixels above those bounds
    std::uint8_t places_[threshold_block];
    SharpTests tests_; ///< of bright pixels
    Sharpness psf_;
    BrightPixel untested_[sharp_lanes];
    BrightPixel top_{}; ///< the highest of them
    float top_value_ = -infinity;
    Maxima found_;
};

} // namespace

/// 1/noise. A cell without noise (a constant patch) takes the median of the others; where none has any, the
/// rounding of float32 stands in for it.
std::vector<float> SkyAt::invert(Sky sky) {
    std::vector<float> positive;
    float highest = 0;
    for (ptrdiff_t i = 0; i < sky.noise.ny * sky.noise.nx; ++i) {
        highest = std::max(highest, std::fabs(sky.level.data[i]));
        if (sky.noise.data[i] > 0)
            positive.push_back(sky.noise.data[i]);
    }
    float middle = highest > 0 ? 1e-6f * highest : 1e-6f;
    if (!positive.empty()) {
        const auto half = positive.begin() + static_cast<ptrdiff_t>(positive.size() / 2);
        std::nth_element(positive.begin(), half, positive.end());
        middle = std::max(middle, *half);
    }
    std::vector<float> inverse(sky.noise.ny * sky.noise.nx);
    for (std::size_t i = 0; i < inverse.size(); ++i)
        inverse[i] = 1.0f / (sky.noise.data[i] > 1e-3f * middle ? sky.noise.data[i] : middle);
    return inverse;
}

Kernel::Kernel(double fwhm) : sigma(fwhm_to_sigma * fwhm) {
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

Vertex vertex(float left, float middle, float right) {
    const float floor = 0.05f * middle;
    const double a = std::log(std::max(left, floor) / middle), c = std::log(std::max(right, floor) / middle);
    const double bend = -(a + c);
    if (!(bend > 1e-6))
        return {0.0, 1.0};
    const double shift = std::clamp(0.5 * (c - a) / bend, -0.6, 0.6);
    return {shift, std::exp(0.5 * bend * shift * shift)};
}

Maxima find_maxima(Image<const float> image, Sky sky, const SkyAt& at, const Kernel& kernel, float threshold,
                   ptrdiff_t y0, ptrdiff_t y1, BrightPixels* bright, const Follow& follow) {
    return Sweep(image, sky, at, kernel, threshold, bright).run(y0, y1, follow);
}

std::vector<BrightPixel> bright_pixels(Image<const float> image, Sky sky) {
    BrightPixels bright;
    find_maxima(image, sky, SkyAt(image, sky), Kernel(1.0), std::numeric_limits<float>::infinity(), 0, image.ny,
                &bright);
    return bright.list;
}

} // namespace fastack
