#include "fastack/measure.hpp"

#include "rows/rows.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <vector>

namespace fastack {

namespace {

using std::ptrdiff_t;

constexpr double nan = std::numeric_limits<double>::quiet_NaN();
constexpr double pi = 3.14159265358979323846;
constexpr double eta_min = 0.02; // beta 50: a Gaussian
constexpr double eta_max = 0.75; // beta 1.33: the flux is still finite
// One faint star says little of its exponent: Gaussian prior on eta in fits of single stars.
constexpr double eta_prior = 0.33;
constexpr double eta_prior_sigma = 0.15;
// A step is the last when it would lower chi^2 by less than this: a thirtieth of a sigma, and what remains after that
// step is far smaller.
constexpr double tolerance = 1e-3;
constexpr double shape_tolerance = 1e-2; // the same of one shape for many stars
// Changes of a star, in sigma, that are worth another fit of its neighbours.
constexpr double disturbance = 0.02;
// A point-spread function is no Moffat profile to the last per cent. In fits of the shape this keeps the
// cores of bright stars from deciding alone, at the cost of the wings that hold the flux (cf. Stetson 1987,
// PASP 99, 191, "profile error").
constexpr double shape_mismatch = 0.01;

/// x, y, peak, sky, a, b, c, eta.
struct Parameters {
    double v[measure_shape];
    bool integrated;

    MoffatShape shape() const { return {v[4], v[5], v[6], v[7], integrated}; }
};

Parameters parameters(double x, double y, double peak, double sky, const MoffatShape& s) {
    return {{x, y, peak, sky, s.a, s.b, s.c, s.eta}, s.integrated};
}

/// The profile at other parameters, but for its exponent.
MeasureMoffat placed(MeasureMoffat m, const Parameters& p) {
    m.x = static_cast<float>(p.v[0]);
    m.y = static_cast<float>(p.v[1]);
    m.peak = static_cast<float>(p.v[2]);
    m.sky = static_cast<float>(p.v[3]);
    m.a = static_cast<float>(p.v[4]);
    m.b = static_cast<float>(p.v[5]);
    m.c = static_cast<float>(p.v[6]);
    return m;
}

MeasureMoffat profile(const Parameters& p, double inverse_gain, double mismatch = 0) {
    const double power = std::exp2(p.v[7]);
    MeasureMoffat m = placed({}, p);
    m.eta = static_cast<float>(p.v[7]);
    m.beta = static_cast<float>(1 / p.v[7]);
    m.k = static_cast<float>(power - 1);
    m.dk = static_cast<float>(power * std::log(2.0));
    m.node = p.integrated ? static_cast<float>(0.5 / std::sqrt(3.0)) : 0.0f;
    m.photons = static_cast<float>(inverse_gain);
    m.mismatch = static_cast<float>(mismatch);
    return m;
}

/// Symmetric normal equations of N parameters.
template <int N> struct Normal {
    double matrix[N][N];
    double gradient[N];

    /// The leading N of P parameters.
    void read(const double* sums, int P) {
        for (int i = 0, k = 0; i < P; ++i)
            for (int j = i; j < P; ++j, ++k)
                if (j < N)
                    matrix[i][j] = matrix[j][i] = sums[k];
        for (int i = 0; i < N; ++i)
            gradient[i] = sums[P * (P + 1) / 2 + i];
    }
};

/// Inverse of a positive definite matrix, scaled to unit diagonal first; false where it is not one.
template <int N> bool invert(const double (&matrix)[N][N], double (&inverse)[N][N]) {
    double scale[N], work[N][N];
    for (int i = 0; i < N; ++i) {
        if (!(matrix[i][i] > 0))
            return false;
        scale[i] = 1 / std::sqrt(matrix[i][i]);
    }
    for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j) {
            work[i][j] = matrix[i][j] * scale[i] * scale[j];
            inverse[i][j] = i == j;
        }
    for (int k = 0; k < N; ++k) {
        if (!(work[k][k] > 1e-9))
            return false;
        const double pivot = 1 / work[k][k];
        for (int j = 0; j < N; ++j) {
            work[k][j] *= pivot;
            inverse[k][j] *= pivot;
        }
        for (int i = 0; i < N; ++i) {
            if (i == k)
                continue;
            const double factor = work[i][k];
            for (int j = 0; j < N; ++j) {
                work[i][j] -= factor * work[k][j];
                inverse[i][j] -= factor * inverse[k][j];
            }
        }
    }
    for (int i = 0; i < N; ++i)
        for (int j = 0; j < N; ++j)
            inverse[i][j] *= scale[i] * scale[j];
    return true;
}

/// Take a parameter that stands at its bound out of the equations.
template <int N> void hold(double (&matrix)[N][N], int fixed) {
    for (int i = 0; i < N; ++i)
        matrix[i][fixed] = matrix[fixed][i] = i == fixed;
}

template <int N> void hold(Normal<N>& normal, int fixed) {
    hold(normal.matrix, fixed);
    normal.gradient[fixed] = 0;
}

/// inverse * gradient; returns what the step takes off chi^2.
template <int N> double step_of(const double (&inverse)[N][N], const double (&gradient)[N], double (&step)[N]) {
    double gain = 0;
    for (int i = 0; i < N; ++i) {
        step[i] = 0;
        for (int j = 0; j < N; ++j)
            step[i] += inverse[i][j] * gradient[j];
        gain += step[i] * gradient[i];
    }
    return gain;
}

/// Lists of floats on 64-byte borders, one after the other.
class Lists {
  public:
    Lists(int count, ptrdiff_t length)
        : length_((length + measure_pad - 1) / measure_pad * measure_pad),
          data_(static_cast<float*>(::operator new(sizeof(float) * length_ * count, std::align_val_t{64}))) {}

    float* operator[](int i) const { return data_.get() + i * length_; }

  private:
    struct Delete {
        void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
    };
    ptrdiff_t length_;
    std::unique_ptr<float, Delete> data_;
};

ptrdiff_t capacity(double radius) {
    const ptrdiff_t side = 2 * static_cast<ptrdiff_t>(radius) + 1;
    return side * side;
}

/// Rows of the stars near a point, by square cells at least as wide as the reach.
class Neighbours {
  public:
    Neighbours(const StarField& field, double reach) : field_(field), reach_(reach), side_(std::max(reach, 8.0)) {
        // larger cells where stars are few: one in four of them or so
        side_ = std::max(side_, 0.5 * std::sqrt(static_cast<double>(field.image.nx * field.image.ny) /
                                                static_cast<double>(std::max<ptrdiff_t>(field.n, 1))));
        nx_ = static_cast<ptrdiff_t>(field.image.nx / side_) + 1;
        ny_ = static_cast<ptrdiff_t>(field.image.ny / side_) + 1;
        first_.assign(nx_ * ny_ + 1, 0);
        for (ptrdiff_t i = 0; i < field.n; ++i)
            ++first_[cell(i) + 1];
        for (std::size_t k = 1; k < first_.size(); ++k)
            first_[k] += first_[k - 1];
        rows_.resize(field.n);
        std::vector<ptrdiff_t> next(first_.begin(), first_.end() - 1);
        for (ptrdiff_t i = 0; i < field.n; ++i)
            rows_[next[cell(i)]++] = i;
    }

    /// Others within the reach of star i, in an order that does not depend on the list's.
    void find(ptrdiff_t i, std::vector<ptrdiff_t>& found) const {
        found.clear();
        const double x = field_.xy[2 * i], y = field_.xy[2 * i + 1];
        if (!std::isfinite(x) || !std::isfinite(y))
            return;
        const ptrdiff_t cx = column(x, nx_), cy = column(y, ny_);
        for (ptrdiff_t ky = std::max<ptrdiff_t>(cy - 1, 0); ky <= std::min(cy + 1, ny_ - 1); ++ky)
            for (ptrdiff_t kx = std::max<ptrdiff_t>(cx - 1, 0); kx <= std::min(cx + 1, nx_ - 1); ++kx)
                for (ptrdiff_t k = first_[ky * nx_ + kx]; k < first_[ky * nx_ + kx + 1]; ++k)
                    if (rows_[k] != i && distance2(i, rows_[k]) < reach_ * reach_)
                        found.push_back(rows_[k]);
        std::sort(found.begin(), found.end(), [this](ptrdiff_t p, ptrdiff_t q) {
            return field_.xy[2 * p] != field_.xy[2 * q] ? field_.xy[2 * p] < field_.xy[2 * q]
                                                        : field_.xy[2 * p + 1] < field_.xy[2 * q + 1];
        });
    }

    double distance2(ptrdiff_t i, ptrdiff_t j) const {
        const double dx = field_.xy[2 * i] - field_.xy[2 * j], dy = field_.xy[2 * i + 1] - field_.xy[2 * j + 1];
        return dx * dx + dy * dy;
    }

  private:
    ptrdiff_t column(double v, ptrdiff_t n) const {
        return v > 0 ? std::min(static_cast<ptrdiff_t>(std::min(v / side_, 1e9)), n - 1) : 0;
    }
    ptrdiff_t cell(ptrdiff_t i) const {
        return column(field_.xy[2 * i + 1], ny_) * nx_ + column(field_.xy[2 * i], nx_);
    }

    const StarField& field_;
    double reach_, side_;
    ptrdiff_t nx_, ny_;
    std::vector<ptrdiff_t> first_, rows_;
};

/// The pixels of one star's window, and room for what a fit derives from them.
class Window {
  public:
    explicit Window(const StarField& field)
        : field_(field), reach_(static_cast<ptrdiff_t>(field.radius)), half_(2 * reach_ + 1),
          lists_(4, capacity(widened() * field.radius)), whole_(2, capacity(field.radius)),
          room_(measure_shape + 3, capacity(widened() * field.radius)) {
        for (ptrdiff_t dy = -reach_; dy <= reach_; ++dy) {
            const ptrdiff_t half = half_width(field.radius, dy);
            half_[dy + reach_] = static_cast<int>(half);
            for (ptrdiff_t dx = -half; dx <= half; ++dx, ++whole_pixels_) {
                whole_[0][whole_pixels_] = static_cast<float>(dx);
                whole_[1][whole_pixels_] = static_cast<float>(dy);
            }
        }
        for (ptrdiff_t i = whole_pixels_; i < padded(whole_pixels_); ++i)
            whole_[0][i] = whole_[1][i] = 0;
    }

    /// Read the pixels about the star's listed position; windows with saturated pixels reach further out.
    bool read(ptrdiff_t row) {
        const double x = field_.xy[2 * row], y = field_.xy[2 * row + 1];
        if (!(std::abs(x) < 1e9 && std::abs(y) < 1e9 && field_.noise[row] > 0 && std::isfinite(field_.sky[row])))
            return false;
        x0 = static_cast<ptrdiff_t>(std::lround(x));
        y0 = static_cast<ptrdiff_t>(std::lround(y));
        if (!collect_whole(row))
            collect(row, field_.radius);
        if (saturated)
            collect(row, widened() * field_.radius);
        return pixels > 2 * measure_width;
    }

    MeasurePixels list() const { return {x_, y_, lists_[2], lists_[3], padded_}; }

    void subtract(double x, double y, double peak, const MoffatShape& shape) {
        const auto star = profile(parameters(x - x0, y - y0, peak, 0, shape), 0);
        rows().measure.subtract(list(), star, lists_[2]);
    }

    /// The highest of the pixels closer to (x, y) than 1.5.
    double top(double x, double y) const {
        const float highest = rows().measure.top(list(), static_cast<float>(x), static_cast<float>(y));
        return std::isfinite(highest) ? static_cast<double>(highest) : nan;
    }

    float* derivatives() const { return room_[0]; }
    float* residual() const { return room_[measure_shape]; }
    float* weight() const { return room_[measure_shape + 1]; }
    float* model_weight() const { return room_[measure_shape + 2]; }
    void swap_weights() { std::swap_ranges(weight(), weight() + padded_, model_weight()); }

    ptrdiff_t x0 = 0, y0 = 0; // the middle pixel
    ptrdiff_t pixels = 0, missing = 0, saturated = 0;

  private:
    static constexpr double widened() { return 1.5; }
    static ptrdiff_t half_width(double radius, ptrdiff_t dy) {
        return static_cast<ptrdiff_t>(std::sqrt(radius * radius - double(dy * dy)));
    }
    static ptrdiff_t padded(ptrdiff_t n) { return (n + measure_pad - 1) / measure_pad * measure_pad; }

    /// A window inside the image without missing or saturated pixels; false where it is no such window.
    bool collect_whole(ptrdiff_t row) {
        const Image<const float>& image = field_.image;
        if (x0 < reach_ || y0 < reach_ || x0 + reach_ >= image.nx || y0 + reach_ >= image.ny ||
            !rows().measure.window(image.row(y0) + x0, image.stride, half_.data(), reach_,
                                   static_cast<float>(field_.sky[row]), static_cast<float>(field_.saturation),
                                   lists_[2]))
            return false;
        x_ = whole_[0];
        y_ = whole_[1];
        pixels = whole_pixels_;
        missing = saturated = 0;
        pad_from(pixels, static_cast<float>(field_.noise[row] * field_.noise[row]));
        return true;
    }

    /// Sets the variance of the first n places, and what pads the lists.
    void pad_from(ptrdiff_t n, float variance) {
        padded_ = padded(n);
        std::fill_n(lists_[3], n, variance);
        std::fill(lists_[2] + n, lists_[2] + padded_, 0.0f);
        std::fill(lists_[3] + n, lists_[3] + padded_, measure_padding);
    }

    void collect(ptrdiff_t row, double radius) {
        const float sky = static_cast<float>(field_.sky[row]);
        const float variance = static_cast<float>(field_.noise[row] * field_.noise[row]);
        // a level that no float32 holds must still be met by the pixels clipped at it
        const float saturation = static_cast<float>(field_.saturation);
        const Image<const float>& image = field_.image;
        const ptrdiff_t reach = static_cast<ptrdiff_t>(radius);
        pixels = missing = saturated = 0;
        for (ptrdiff_t dy = -reach; dy <= reach; ++dy) {
            const ptrdiff_t y = y0 + dy;
            const ptrdiff_t half = half_width(radius, dy);
            if (y < 0 || y >= image.ny) {
                missing += 2 * half + 1;
                continue;
            }
            const float* values = image.row(y);
            for (ptrdiff_t x = x0 - half; x <= x0 + half; ++x) {
                const float value = x < 0 || x >= image.nx ? std::numeric_limits<float>::quiet_NaN() : values[x];
                if (!std::isfinite(value)) {
                    ++missing;
                } else if (value >= saturation) {
                    ++saturated;
                } else {
                    lists_[0][pixels] = static_cast<float>(x - x0);
                    lists_[1][pixels] = static_cast<float>(dy);
                    lists_[2][pixels] = value - sky;
                    ++pixels;
                }
            }
        }
        pad_from(pixels, variance);
        std::fill(lists_[0] + pixels, lists_[0] + padded_, 0.0f);
        std::fill(lists_[1] + pixels, lists_[1] + padded_, 0.0f);
        x_ = lists_[0];
        y_ = lists_[1];
    }

    const StarField& field_;
    ptrdiff_t reach_;
    std::vector<int> half_; ///< half width of each row of a window
    Lists lists_;
    Lists whole_; ///< x and y of a window without gaps
    Lists room_;
    const float *x_ = nullptr, *y_ = nullptr;
    ptrdiff_t whole_pixels_ = 0, padded_ = 0;
};

/// A star that only stands beside others.
StarFit unfitted(const StarField& field, ptrdiff_t row) {
    StarFit fit{};
    fit.x = field.xy[2 * row];
    fit.y = field.xy[2 * row + 1];
    fit.peak = fit.sky = fit.xy_err = fit.peak_err = fit.top = fit.width = fit.width_err = nan;
    fit.a = fit.b = fit.c = fit.eta = fit.chi2 = nan;
    return fit;
}

StarFit failed(const StarField& field, ptrdiff_t row, const Window& window, ptrdiff_t neighbours) {
    StarFit fit = unfitted(field, row);
    fit.pixels = static_cast<std::int32_t>(window.pixels);
    fit.missing = static_cast<std::int32_t>(window.missing);
    fit.saturated = static_cast<std::int32_t>(window.saturated);
    fit.neighbours = static_cast<std::int32_t>(neighbours);
    return fit;
}

/// Of a vector far from the limits of a double; std::hypot takes four times as long.
double length(double dx, double dy) {
    return std::sqrt(dx * dx + dy * dy);
}

/// Whether a fit differs from the one before by more than its neighbours can overlook.
bool moved(const StarFit& before, const StarFit& now) {
    if (before.converged != now.converged)
        return true;
    return now.converged && (std::abs(now.peak - before.peak) > disturbance * now.peak_err ||
                             length(now.x - before.x, now.y - before.y) > disturbance * now.xy_err);
}

/// How far a fit may leave the listed position.
double leash(const StarField& field) {
    return std::max(1.0, 0.7 * field.shape.fwhm());
}

bool strayed(const StarField& field, ptrdiff_t row, double x, double y) {
    return !(length(x - field.xy[2 * row], y - field.xy[2 * row + 1]) < leash(field));
}

/// Largest step of a position in one iteration, from which a linear expansion still holds.
double shorten(double dx, double dy, const StarField& field) {
    const double step = length(dx, dy), limit = 0.25 * field.shape.fwhm();
    return step > limit ? limit / step : 1;
}

/// The field's shape fitted to the pixels of the window: position, peak, sky, then the width.
StarFit fit_one(const StarField& field, ptrdiff_t row, const Window& window, StarFit fit, double peak) {
    double sums[measure_sums(measure_width)];
    double inverse[4][4], step[4];
    Normal<4> normal;
    Parameters p = parameters(fit.x - window.x0, fit.y - window.y0, peak, 0, field.shape);
    const MeasurePixels pixels = window.list();
    const MeasureMoffat start = profile(p, field.inverse_gain);
    bool converged = false;
    for (int round = 0; round < 25 && !converged; ++round) {
        rows().measure.width_sums(pixels, placed(start, p), sums);
        normal.read(sums, measure_width);
        if (!invert(normal.matrix, inverse))
            return fit;
        const double excess = 1 + sums[measure_sums(measure_width) - 1] / static_cast<double>(pixels.n);
        converged = step_of(inverse, normal.gradient, step) < tolerance * excess;
        const double part = shorten(step[0], step[1], field);
        p.v[0] += part * step[0];
        p.v[1] += part * step[1];
        p.v[2] += step[2];
        p.v[3] += step[3];
        if (!(p.v[2] > 0)) { // a peak below the sky leaves the position without a hold
            if (round > 2)
                return fit;
            p.v[2] = std::sqrt(inverse[2][2]);
        }
        if (strayed(field, row, p.v[0] + window.x0, p.v[1] + window.y0))
            return fit;
    }
    if (!converged)
        return fit;
    fit.x = p.v[0] + window.x0;
    fit.y = p.v[1] + window.y0;
    fit.peak = p.v[2];
    fit.sky = p.v[3] + field.sky[row];
    fit.xy_err = std::sqrt((inverse[0][0] + inverse[1][1]) / 2);
    fit.peak_err = std::sqrt(inverse[2][2]);
    fit.chi2 = sums[measure_sums(measure_width) - 1];
    fit.top = window.top(p.v[0], p.v[1]) - p.v[3];
    fit.converged = 1;

    Normal<measure_width> wide;
    double wide_inverse[measure_width][measure_width], wide_step[measure_width];
    double stretch = 0;
    for (int round = 0; round < 12; ++round) {
        if (round)
            rows().measure.width_sums(pixels, placed(start, p), sums);
        wide.read(sums, measure_width);
        if (!invert(wide.matrix, wide_inverse))
            break;
        const double excess = 1 + sums[measure_sums(measure_width) - 1] / static_cast<double>(pixels.n);
        const double gain = step_of(wide_inverse, wide.gradient, wide_step);
        const double part = shorten(wide_step[0], wide_step[1], field);
        const double growth = std::clamp(wide_step[4], -0.3, 0.3);
        p.v[0] += part * wide_step[0];
        p.v[1] += part * wide_step[1];
        p.v[2] = std::max(p.v[2] + wide_step[2], 0.2 * p.v[2]);
        p.v[3] += wide_step[3];
        stretch += growth;
        for (int i = 4; i < 7; ++i)
            p.v[i] *= std::exp(-2 * growth);
        if (std::abs(stretch) > 2.5)
            break;
        const double error = std::sqrt(wide_inverse[4][4]);
        // What a linear step leaves is of the order of its square.
        if (growth == wide_step[4] && (gain < 0.01 * excess || growth * growth < 0.05 * error)) {
            fit.width = std::exp(stretch);
            fit.width_err = fit.width * error;
            break;
        }
    }
    // A stretch that runs off to nothing is a single pixel.
    if (stretch < -1)
        fit.width = std::exp(stretch);
    return fit;
}

/// Levenberg-Marquardt on one window with all parameters free.
bool levenberg(Window& window, Parameters& p, double inverse_gain, double radius,
               double (&covariance)[measure_shape][measure_shape], double& chi2) {
    constexpr int P = measure_shape;
    const MeasureRows& kernel = rows().measure;
    const MeasurePixels pixels = window.list();
    const auto prior_pull = [](const Parameters& q) {
        return (eta_prior - q.v[7]) / (eta_prior_sigma * eta_prior_sigma);
    };
    const auto penalty = [](const Parameters& q) {
        const double z = (eta_prior - q.v[7]) / eta_prior_sigma;
        return z * z;
    };
    double sums[measure_sums(P)], step[P], damped[P][P];
    Normal<P> normal;
    std::copy_n(pixels.variance, pixels.n,
                window.weight()); // overwritten at once: the first call weighs nothing
    kernel.shape(pixels, profile(p, inverse_gain, shape_mismatch), window.weight(), window.derivatives(),
                 window.residual(), window.model_weight());
    double damping = 1e-3;
    bool fresh = true;
    for (int round = 0; round < 60; ++round) {
        if (fresh) {
            window.swap_weights();
            kernel.shape_sums(pixels.n, window.derivatives(), window.residual(), window.weight(), sums);
            normal.read(sums, P);
            chi2 = sums[measure_sums(P) - 1] + penalty(p);
            normal.matrix[7][7] += 1 / (eta_prior_sigma * eta_prior_sigma);
            normal.gradient[7] += prior_pull(p);
        }
        std::copy(&normal.matrix[0][0], &normal.matrix[0][0] + P * P, &damped[0][0]);
        for (int i = 0; i < P; ++i)
            damped[i][i] *= 1 + damping;
        if (!invert(damped, covariance))
            return false;
        double gain = step_of(covariance, normal.gradient, step);
        if ((p.v[7] <= eta_min && step[7] < 0) || (p.v[7] >= eta_max && step[7] > 0)) {
            hold(normal, 7);
            hold(damped, 7);
            if (!invert(damped, covariance))
                return false;
            gain = step_of(covariance, normal.gradient, step);
        }
        Parameters trial = p;
        for (int i = 0; i < P; ++i)
            trial.v[i] += step[i];
        trial.v[7] = std::clamp(trial.v[7], eta_min, eta_max);
        const double width = trial.v[4] > 0 && trial.shape().determinant() > 0 ? trial.shape().fwhm() : nan;
        fresh = false;
        if (width > 0.2 && width < 4 * radius && std::hypot(step[0], step[1]) < radius) {
            const double squares = kernel.shape(pixels, profile(trial, inverse_gain, shape_mismatch), window.weight(),
                                                window.derivatives(), window.residual(), window.model_weight());
            fresh = squares + penalty(trial) <= chi2;
        }
        if (fresh)
            p = trial;
        damping = fresh ? std::max(damping * 0.1, 1e-9) : std::max(damping * 8, 1e-4);
        if (gain < tolerance * (1 + chi2 / static_cast<double>(pixels.n)))
            return invert(normal.matrix, covariance);
        if (damping > 1e8)
            return false;
    }
    return false;
}

} // namespace

void fit_stars(const StarField& field, Span<const std::int64_t> chosen, int passes, StarFit* fits) {
    const double fwhm = field.shape.fwhm();
    const Neighbours neighbours(field, field.radius + 2 * fwhm);
    Window window(field);
    std::vector<ptrdiff_t> near, crowded;
    std::vector<StarFit> last;
    std::vector<char> wanted(field.n, 0), changed;
    const auto fit = [&](ptrdiff_t i) {
        ptrdiff_t inside = 0;
        for (const ptrdiff_t j : near)
            inside += neighbours.distance2(i, j) < field.radius * field.radius;
        const bool usable = window.read(i);
        StarFit start = failed(field, i, window, inside);
        if (usable) {
            for (const ptrdiff_t j : near) {
                const bool known = !last.empty() && last[j].converged;
                const double peak = known ? last[j].peak : field.peak[j];
                if (peak > 0)
                    window.subtract(known ? last[j].x : field.xy[2 * j], known ? last[j].y : field.xy[2 * j + 1], peak,
                                    field.shape);
            }
            double peak = field.peak[i];
            if (!(peak > 0))
                peak = std::max(window.top(start.x - window.x0, start.y - window.y0), field.noise[i]);
            start = fit_one(field, i, window, start, peak);
        }
        fits[i] = start;
    };
    for (const std::int64_t i : chosen)
        wanted[i] = 1;
    for (ptrdiff_t i = 0; i < field.n; ++i) {
        if (!wanted[i]) {
            fits[i] = unfitted(field, i);
            continue;
        }
        if (const ptrdiff_t next = i + 2;
            next < field.n && std::abs(field.xy[2 * next]) < 1e9 && std::abs(field.xy[2 * next + 1]) < 1e9)
            prefetch(field.image, std::lround(field.xy[2 * next]), std::lround(field.xy[2 * next + 1]),
                     static_cast<ptrdiff_t>(field.radius));
        neighbours.find(i, near);
        fit(i);
        if (!near.empty())
            crowded.push_back(i);
    }
    changed.assign(field.n, 1);
    for (int pass = 0; pass < passes && !crowded.empty(); ++pass) {
        last.assign(fits, fits + field.n);
        std::size_t fitted = 0;
        for (const ptrdiff_t i : crowded) {
            neighbours.find(i, near);
            if (std::none_of(near.begin(), near.end(), [&](ptrdiff_t j) { return changed[j]; }))
                continue;
            fit(i);
            ++fitted;
        }
        if (!fitted)
            break;
        for (ptrdiff_t i = 0; i < field.n; ++i)
            changed[i] = moved(last[i], fits[i]);
    }
}

void fit_moffat(const StarField& field, Span<const std::int64_t> chosen, StarFit* fits) {
    constexpr int P = measure_shape;
    const Neighbours neighbours(field, field.radius + 2 * field.shape.fwhm());
    Window window(field);
    std::vector<ptrdiff_t> near;
    double covariance[P][P];
    for (ptrdiff_t k = 0; k < chosen.size; ++k) {
        const ptrdiff_t i = chosen[k];
        neighbours.find(i, near);
        const bool usable = window.read(i);
        StarFit fit = failed(field, i, window, static_cast<ptrdiff_t>(near.size()));
        if (usable && field.peak[i] > 0 && window.pixels > 2 * P) {
            for (const ptrdiff_t j : near)
                if (field.peak[j] > 0)
                    window.subtract(field.xy[2 * j], field.xy[2 * j + 1], field.peak[j], field.shape);
            Parameters p = parameters(fit.x - window.x0, fit.y - window.y0, field.peak[i], 0, field.shape);
            double chi2 = nan;
            if (levenberg(window, p, field.inverse_gain, field.radius, covariance, chi2) &&
                !strayed(field, i, p.v[0] + window.x0, p.v[1] + window.y0) && p.v[2] > 0) {
                const MoffatShape shape = p.shape();
                const double along[3] = {shape.c, -2 * shape.b, shape.a}; // d det / d(a, b, c)
                double variance = 0;
                for (int r = 0; r < 3; ++r)
                    for (int s = 0; s < 3; ++s)
                        variance += along[r] * along[s] * covariance[4 + r][4 + s];
                fit.x = p.v[0] + window.x0;
                fit.y = p.v[1] + window.y0;
                fit.peak = p.v[2];
                fit.sky = p.v[3] + field.sky[i];
                fit.xy_err = std::sqrt((covariance[0][0] + covariance[1][1]) / 2);
                fit.peak_err = std::sqrt(covariance[2][2]);
                fit.top = window.top(p.v[0], p.v[1]) - p.v[3];
                fit.a = shape.a;
                fit.b = shape.b;
                fit.c = shape.c;
                fit.eta = shape.eta;
                fit.width = shape.fwhm() / field.shape.fwhm();
                fit.width_err = std::sqrt(variance) / (4 * shape.determinant());
                fit.chi2 = chi2;
                fit.converged = 1;
            }
        }
        fits[k] = fit;
    }
}

bool fit_shape(const StarField& field, Span<const std::int64_t> chosen, MoffatShape& shape, double* likelihood) {
    constexpr int P = measure_shape;
    // Shapes differ over a frame by some per cent; more than that a bright star must not count.
    constexpr double intrinsic = 0.02;
    // Deviation of a star's four shape parameters (chi^2) at which its weight is halved.
    constexpr double outlying = 20;
    const MeasureRows& kernel = rows().measure;
    const Neighbours neighbours(field, field.radius + 2 * field.shape.fwhm());

    struct Star {
        ptrdiff_t row;
        double* likelihood;
        Parameters p;
        double own[4][4], mixed[4][4], gradient[4]; // inverse of the private block, coupling to the shape
        bool used;
    };
    std::vector<Star> stars;
    std::vector<ptrdiff_t> near;
    Window window(field);
    std::fill_n(likelihood, chosen.size, nan);
    for (const std::int64_t& i : chosen)
        if (field.peak[i] > 0)
            stars.push_back({i,
                             likelihood + (&i - chosen.data),
                             parameters(field.xy[2 * i], field.xy[2 * i + 1], field.peak[i], 0, field.shape),
                             {},
                             {},
                             {},
                             true});

    shape = field.shape;
    double sums[measure_sums(P)], step[4];
    for (int round = 0; round < 40; ++round) {
        Normal<4> total{};
        double squares = 0, samples = 0;
        for (Star& star : stars) {
            *star.likelihood = nan;
            star.used = window.read(star.row) && window.pixels > 2 * P;
            if (!star.used)
                continue;
            neighbours.find(star.row, near);
            for (const ptrdiff_t j : near)
                if (field.peak[j] > 0)
                    window.subtract(field.xy[2 * j], field.xy[2 * j + 1], field.peak[j], shape);
            Parameters p =
                parameters(star.p.v[0] - window.x0, star.p.v[1] - window.y0, star.p.v[2], star.p.v[3], shape);
            const MeasurePixels pixels = window.list();
            kernel.shape(pixels, profile(p, field.inverse_gain, shape_mismatch), pixels.variance, window.derivatives(),
                         window.residual(), window.model_weight());
            kernel.shape_sums(pixels.n, window.derivatives(), window.residual(), window.model_weight(), sums);
            Normal<P> normal;
            normal.read(sums, P);
            Normal<4> own, shared; // the star's own parameters; the shape with those eliminated
            own.read(sums, P);
            if (!(star.used = invert(own.matrix, star.own)))
                continue;
            std::copy_n(normal.gradient, 4, star.gradient);
            double projected[4][4] = {};
            for (int r = 0; r < 4; ++r)
                for (int s = 0; s < 4; ++s) {
                    star.mixed[r][s] = normal.matrix[r][4 + s];
                    for (int t = 0; t < 4; ++t)
                        projected[r][s] += star.own[r][t] * normal.matrix[t][4 + s];
                }
            for (int r = 0; r < 4; ++r) {
                shared.gradient[r] = normal.gradient[4 + r];
                for (int t = 0; t < 4; ++t)
                    shared.gradient[r] -= projected[t][r] * normal.gradient[t];
                for (int s = 0; s < 4; ++s) {
                    shared.matrix[r][s] = normal.matrix[4 + r][4 + s];
                    for (int t = 0; t < 4; ++t)
                        shared.matrix[r][s] -= normal.matrix[4 + r][t] * projected[t][s];
                }
            }
            // information on the logarithm of the width: d(a, b, c) = -2 (a, b, c) d log(width)
            const double abc[3] = {shape.a, shape.b, shape.c};
            double information = 0;
            for (int r = 0; r < 3; ++r)
                for (int s = 0; s < 3; ++s)
                    information += 4 * abc[r] * abc[s] * shared.matrix[r][s];
            const double flattened = 1 / (1 + intrinsic * intrinsic * information);
            double inverse[4][4];
            double deviation = 0;
            if (invert(shared.matrix, inverse))
                deviation = step_of(inverse, shared.gradient, step) * flattened;
            const double weight = flattened / (1 + deviation / outlying);
            // Without the logarithm of the model's variance (over that of the background), a sum of squares under the
            // model's own weights favours the model that claims more noise.
            *star.likelihood = sums[measure_sums(P) - 1] - kernel.log_ratio(pixels, window.model_weight());
            squares += *star.likelihood;
            samples += static_cast<double>(pixels.n);
            for (int r = 0; r < 4; ++r) {
                total.gradient[r] += weight * shared.gradient[r];
                for (int s = 0; s < 4; ++s)
                    total.matrix[r][s] += weight * shared.matrix[r][s];
            }
        }
        double inverse[4][4];
        total.matrix[3][3] += 1 / (eta_prior_sigma * eta_prior_sigma);
        total.gradient[3] += (eta_prior - shape.eta) / (eta_prior_sigma * eta_prior_sigma);
        if (!invert(total.matrix, inverse))
            return false;
        double gain = step_of(inverse, total.gradient, step);
        if ((shape.eta <= eta_min && step[3] < 0) || (shape.eta >= eta_max && step[3] > 0)) {
            hold(total, 3);
            if (!invert(total.matrix, inverse))
                return false;
            gain = step_of(inverse, total.gradient, step);
        }
        MoffatShape next = {shape.a + step[0], shape.b + step[1], shape.c + step[2],
                            std::clamp(shape.eta + step[3], eta_min, eta_max), shape.integrated};
        double part = 1;
        while (!(next.a > 0 && next.determinant() > 0 && std::abs(std::log(next.fwhm() / shape.fwhm())) < 0.3)) {
            part /= 2;
            if (part < 1e-3)
                return false;
            next = {shape.a + part * step[0], shape.b + part * step[1], shape.c + part * step[2],
                    std::clamp(shape.eta + part * step[3], eta_min, eta_max), shape.integrated};
        }
        const double change[4] = {next.a - shape.a, next.b - shape.b, next.c - shape.c, next.eta - shape.eta};
        shape = next;
        for (Star& star : stars) {
            if (!star.used)
                continue;
            double rest[4], own_step[4];
            for (int r = 0; r < 4; ++r) {
                rest[r] = star.gradient[r];
                for (int s = 0; s < 4; ++s)
                    rest[r] -= star.mixed[r][s] * change[s];
            }
            step_of(star.own, rest, own_step);
            const double limit = shorten(own_step[0], own_step[1], field);
            star.p.v[0] += limit * own_step[0];
            star.p.v[1] += limit * own_step[1];
            star.p.v[2] = std::max(star.p.v[2] + own_step[2], 0.3 * star.p.v[2]);
            star.p.v[3] += own_step[3];
        }
        if (round > 0 && part == 1 && gain < shape_tolerance * (1 + std::abs(squares) / samples))
            return true;
    }
    return false;
}

} // namespace fastack
