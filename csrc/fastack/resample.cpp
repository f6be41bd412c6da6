#include "fastack/resample.hpp"

#include "fastack/background.hpp"
#include "fastack/resample_kernel.hpp"
#include "rows/rows.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace fastack {
namespace {

constexpr float nan = std::numeric_limits<float>::quiet_NaN();

// --- maps

double evaluate(const double (&c)[10], double u, double v) {
    return c[0] + u * (c[1] + u * (c[3] + u * c[6] + v * c[7]) + v * (c[4] + v * c[8])) +
           v * (c[2] + v * (c[5] + v * c[9]));
}

double derivative_u(const double (&c)[10], double u, double v) {
    return c[1] + u * (2 * c[3] + 3 * u * c[6] + 2 * v * c[7]) + v * (c[4] + v * c[8]);
}

double derivative_v(const double (&c)[10], double u, double v) {
    return c[2] + v * (2 * c[5] + 3 * v * c[9] + 2 * u * c[8]) + u * (c[4] + u * c[7]);
}

double determinant(const Map& m, double u, double v) {
    return derivative_u(m.x, u, v) * derivative_v(m.y, u, v) -
           derivative_v(m.x, u, v) * derivative_u(m.y, u, v);
}

struct Range {
    double low, high;
};

/// Bounds of a cubic over a rectangle: its values on a mesh, and as much as it can differ from a plane in
/// between.
Range bounds(const double (&c)[10], double u0, double u1, double v0, double v1) {
    double bend = 0; // largest second derivatives; those of a cubic are largest in a corner
    const double du = u1 - u0, dv = v1 - v0;
    for (double u : {u0, u1})
        for (double v : {v0, v1}) {
            const double uu = 2 * c[3] + 6 * c[6] * u + 2 * c[7] * v,
                         vv = 2 * c[5] + 6 * c[9] * v + 2 * c[8] * u;
            const double uv = c[4] + 2 * c[7] * u + 2 * c[8] * v;
            bend = std::max(bend,
                            std::fabs(uu) * du * du + 2 * std::fabs(uv) * du * dv + std::fabs(vv) * dv * dv);
        }
    const int n = bend == 0 ? 1 : static_cast<int>(std::clamp(std::ceil(std::sqrt(bend * 2)), 1.0, 64.0));
    Range range{std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity()};
    for (int j = 0; j <= n; ++j)
        for (int i = 0; i <= n; ++i) {
            const double value = evaluate(c, u0 + du * i / n, v0 + dv * j / n);
            range = {std::min(range.low, value), std::max(range.high, value)};
        }
    const double between = bend / (8.0 * n * n);
    return {range.low - between, range.high + between};
}

std::ptrdiff_t whole(double x) {
    return static_cast<std::ptrdiff_t>(std::floor(std::clamp(x, -1e9, 1e9)));
}

std::ptrdiff_t round_down(std::ptrdiff_t x, std::ptrdiff_t unit) {
    return x - (x % unit + unit) % unit;
}

std::ptrdiff_t round_up(std::ptrdiff_t x, std::ptrdiff_t unit) {
    return round_down(x + unit - 1, unit);
}

/// Frame pixels under the kernels of a tile, blocks being computed whole; not yet cut to the frame.
Box footprint(const Map& map, Box tile, Kernel kernel) {
    double around = 0;
    if (kernel == Kernel::area)
        around = 0.5;
    else
        tile.x0 = round_down(tile.x0, block_columns), tile.x1 = round_up(tile.x1, block_columns);
    const double u0 = tile.x0 - around - map.origin_x, u1 = tile.x1 - 1 + around - map.origin_x;
    const double v0 = tile.y0 - around - map.origin_y, v1 = tile.y1 - 1 + around - map.origin_y;
    const Range x = bounds(map.x, u0, u1, v0, v1), y = bounds(map.y, u0, u1, v0, v1);
    // Blocks use one window along p for all lanes, and reach further than the kernel by less than this.
    constexpr double margin = 0.05;
    if (kernel == Kernel::area || kernel == Kernel::nearest)
        return {whole(y.low + 0.5 - margin), whole(y.high + 0.5 + margin) + 1, whole(x.low + 0.5 - margin),
                whole(x.high + 0.5 + margin) + 1};
    const int reach = expanded(kernel).taps / 2;
    return {whole(y.low - margin) - reach + 1, whole(y.high + margin) + reach + 1,
            whole(x.low - margin) - reach + 1, whole(x.high + margin) + reach + 1};
}

Box common(Box a, Box b) {
    return {std::max(a.y0, b.y0), std::min(a.y1, b.y1), std::max(a.x0, b.x0), std::min(a.x1, b.x1)};
}

/// How the frame is reflected and transposed so that p grows with the output's x and q with its y.
struct Turn {
    bool transposed;
    int sign_p, sign_q;
    Map map; // to (p, q)

    explicit Turn(const Map& m) : map(m) {
        transposed = std::fabs(m.x[1]) + std::fabs(m.y[2]) < std::fabs(m.y[1]) + std::fabs(m.x[2]);
        if (transposed)
            std::swap(map.x, map.y);
        sign_p = map.x[1] < 0 ? -1 : 1;
        sign_q = map.y[2] < 0 ? -1 : 1;
        for (int k = 0; k < 10; ++k) {
            map.x[k] *= sign_p;
            map.y[k] *= sign_q;
        }
    }

    /// A box of the frame, as a box in (q, p).
    Box operator()(Box b) const {
        if (transposed)
            std::swap(b.y0, b.x0), std::swap(b.y1, b.x1);
        if (sign_p < 0)
            b = {b.y0, b.y1, 1 - b.x1, 1 - b.x0};
        if (sign_q < 0)
            b = {1 - b.y1, 1 - b.y0, b.x0, b.x1};
        return b;
    }
};

bool is_linear(const Map& m) {
    return std::all_of(m.x + 3, m.x + 10, [](double c) { return c == 0; }) &&
           std::all_of(m.y + 3, m.y + 10, [](double c) { return c == 0; });
}

/// Coordinates along the row at v; of a linear map p and q alone depend on it.
ResampleLine line_at(const Map& m, double v, bool folded) {
    ResampleLine line{};
    const auto along = [v](const double (&c)[10], double (&value)[4], double (&du)[4], double (&dv)[4]) {
        value[0] = c[0] + v * (c[2] + v * (c[5] + v * c[9]));
        value[1] = c[1] + v * (c[4] + v * c[8]);
        value[2] = c[3] + v * c[7];
        value[3] = c[6];
        du[0] = value[1], du[1] = 2 * value[2], du[2] = 3 * value[3];
        dv[0] = c[2] + v * (2 * c[5] + v * 3 * c[9]), dv[1] = c[4] + v * 2 * c[8], dv[2] = c[7];
    };
    along(m.x, line.p, line.px, line.py);
    along(m.y, line.q, line.qx, line.qy);
    line.linear = is_linear(m);
    if (folded) // |J| is wanted
        for (int k = 0; k < 4; ++k)
            line.px[k] = -line.px[k], line.py[k] = -line.py[k];
    return line;
}

/// A part of the turned frame less `level`, NaN around it.
class Buffer {
  public:
    std::ptrdiff_t height = 0, width = 0;
    std::ptrdiff_t q0 = 0, p0 = 0;
    bool any_missing = false;
    Box frame{}; // in pixels of the buffer

    const float* data() const { return pixels_.get() + start_; }

    void fill(const Section& section, const Turn& turn, Box box, Box whole) {
        q0 = box.y0, p0 = box.x0;
        frame = {whole.y0 - q0, whole.y1 - q0, whole.x0 - p0, whole.x1 - p0};
        height = box.y1 - q0, width = round_up(box.x1 - p0, 16);
        if (const std::ptrdiff_t size = height * width + 32; size > size_) {
            pixels_ = std::make_unique_for_overwrite<float[]>(static_cast<std::size_t>(size));
            size_ = size;
        }
        start_ = (64 - reinterpret_cast<std::uintptr_t>(pixels_.get()) % 64) % 64 / sizeof(float);
        float* const to = pixels_.get() + start_;
        const Box held =
            turn({section.y0, section.y0 + section.pixels.ny, section.x0, section.x0 + section.pixels.nx});
        const Box in = common(common(held, whole), {q0, q0 + height, p0, p0 + width});
        missing_.assign(static_cast<std::size_t>(height), ~std::uint64_t{0});
        cell_ = 3;
        while (width > std::ptrdiff_t{64} << cell_)
            ++cell_;
        any_missing = true;
        if (in.empty()) {
            std::fill_n(to, height * width, nan);
            return;
        }
        const std::ptrdiff_t stride = section.pixels.stride;
        const std::ptrdiff_t dp = turn.sign_p * (turn.transposed ? stride : 1);
        const std::ptrdiff_t dq = turn.sign_q * (turn.transposed ? 1 : stride);
        const std::ptrdiff_t a = turn.sign_p * in.x0, b = turn.sign_q * in.y0;
        const float* const from = turn.transposed ? section.pixels.row(a - section.y0) + (b - section.x0)
                                                  : section.pixels.row(b - section.y0) + (a - section.x0);
        const std::ptrdiff_t x0 = in.x0 - p0, x1 = in.x1 - p0, y0 = in.y0 - q0, y1 = in.y1 - q0;
        suspect_.assign(static_cast<std::size_t>(height), 1);
        rows().resample.turn(from, dp, dq, x1 - x0, y1 - y0, section.level, to + y0 * width + x0, width,
                             suspect_.data() + y0);
        // Beyond the frame all is missing; pixels of the frame that the section does not hold are not needed.
        const float left = held.x0 <= whole.x0 ? nan : 0, right = held.x1 >= whole.x1 ? nan : 0;
        std::fill_n(to, y0 * width, held.y0 <= whole.y0 ? nan : 0);
        std::fill_n(to + y1 * width, (height - y1) * width, held.y1 >= whole.y1 ? nan : 0);
        std::uint64_t beyond = 0; // cells that hold pixels beyond the frame's sides
        if (left != 0)
            beyond |= cells(0, x0);
        if (right != 0)
            beyond |= cells(x1, width);
        any_missing = false;
        for (std::ptrdiff_t y = 0; y < height; ++y) {
            if (y >= y0 && y < y1) {
                std::fill_n(to + y * width, x0, left);
                std::fill_n(to + y * width + x1, width - x1, right);
            }
            missing_[y] = suspect_[y] ? rows().resample.scan(to + y * width, width, std::ptrdiff_t{1} << cell_) : beyond;
            any_missing = any_missing || missing_[y];
        }
    }

    /// Whether a pixel is missing in a part of the buffer, or near it.
    bool missing(Box part) const { return missing(part, any_missing ? cells_of(part.y0, part.y1) : 0); }

    /// The same where it is known which cells of a part's rows, and perhaps of others, miss a pixel.
    bool missing(Box part, std::uint64_t known) const {
        if (!any_missing)
            return false;
        const Box in = common(part, {0, height, 0, width});
        return in.empty() || (known & cells(in.x0, in.x1));
    }

    /// Cells that miss a pixel in one of the rows y0 to y1, as bits.
    std::uint64_t cells_of(std::ptrdiff_t y0, std::ptrdiff_t y1) const {
        std::uint64_t bits = 0;
        for (std::ptrdiff_t y = std::max<std::ptrdiff_t>(y0, 0); y < std::min(y1, height); ++y)
            bits |= missing_[y];
        return bits;
    }

  private:
    /// Bits of the cells that hold the columns x0 to x1.
    std::uint64_t cells(std::ptrdiff_t x0, std::ptrdiff_t x1) const {
        if (x0 >= x1)
            return 0;
        const std::ptrdiff_t first = x0 >> cell_, last = (x1 - 1) >> cell_;
        return ~std::uint64_t{0} >> (63 - last + first) << first;
    }

    std::unique_ptr<float[]> pixels_;
    std::ptrdiff_t size_ = 0;
    std::vector<std::uint64_t> missing_; // of each row: bit i is set where a pixel of cell i is missing
    std::vector<unsigned char> suspect_; // (height)
    std::ptrdiff_t start_ = 0;
    int cell_ = 3; // binary logarithm of a cell's columns
};

// --- tiles

/// Everything that holds for a whole tile.
struct Work {
    const Section& section;
    const ResampleHow& how;
    const Resampled& to;
    const ResampleKernel& kernel;
    Box tile;
    Turn turn;
    bool folded, linear; // the turned map
    float factor;

    // How weights change from pixel to pixel is what |step - 1| says. An expansion errs by w''/2 (|step - 1|
    // n)^2 and |w''| < 3.7, n pixels being the distance to where it is exact: less than 5e-5 on either axis.
    static constexpr double gentle = 7.5e-4;
    // Half a row from where the weights along q are exact they err by w' |step - 1| / 2, and |w'| < 1.2.
    static constexpr float pair_limit = 1.2e-4f;
    ResampleLine line; // of a linear map, at v = 0
    bool straight;     // blocks of a linear map
    bool curved;    // weights along p as quadratics, not as straight lines, of the place in the block
    int group_rows; // rows that share the weights along q

    double p_limit() const { return curved ? 2e-3 : gentle; }
    double q_limit() const { return group_rows > 8 ? gentle : 2 * gentle; }
};

/// Calls f(x, n) for each run of a row's columns [x0, x1) that lies side by side.
template <class T, class F>
void runs(const PanelImage<T>& image, std::ptrdiff_t x0, std::ptrdiff_t x1, const F& f) {
    for (std::ptrdiff_t x = x0, n; x < x1; x += n) {
        n = image.together(x, x1 - x);
        f(x, n);
    }
}

void write_missing(const Work& work, Box part) {
    for (std::ptrdiff_t y = part.y0 - work.tile.y0; y < part.y1 - work.tile.y0; ++y)
        runs(work.to.out, part.x0 - work.tile.x0, part.x1 - work.tile.x0, [&](std::ptrdiff_t x, std::ptrdiff_t n) {
            std::fill_n(work.to.out.at(y, x), n, nan);
            if (work.to.factor)
                std::fill_n(work.to.factor.at(y, x), n, 1);
        });
}

/// Whether the weights along p may be expanded along the block, and those along q down the group.
bool is_straight(const Work& work, const ResamplePlan& plan, int b, double u, double v) {
    const Map& m = work.turn.map;
    // Weights with a kink are not expanded: nearest and bilinear take blocks of exact unit step only.
    if (work.how.square || (work.kernel.taps <= 2 && (plan.p[1][b] != 1 || plan.drift[0][b] != 0)))
        return false;
    const double p1 = plan.p[1][b] - 1, p2 = plan.p[2][b], p3 = plan.p[3][b];
    const double q1 = plan.q[1][b], q2 = plan.q[2][b], q3 = plan.q[3][b];
    const double drift = std::fabs(plan.drift[0][b]) + 8 * std::fabs(plan.drift[1][b]);
    // Terms of q that the expansion leaves out, at lane 8 and row 4 of the block's middle.
    const double bend = 16 * std::fabs(m.y[5] + 3 * m.y[9] * v + m.y[8] * u) + 64 * std::fabs(m.y[9]) +
                        256 * std::fabs(m.y[7]) + 128 * std::fabs(m.y[8]);
    return std::fabs(p1) < work.p_limit() && std::fabs(p2) < 2e-5 && std::fabs(p3) < 2e-8 &&
           drift < work.q_limit() && bend < 2e-5 &&
           15.5 * std::fabs(q1) + 64 * std::fabs(q2) + 512 * std::fabs(q3) < 1;
}

/// Rows and columns of the buffer that a block of one row may touch.
Box touched(const Buffer& buffer, const ResamplePlan& plan, int b, int taps) {
    const auto half = [b](const float (&c)[4][16]) {
        const float h = 8 * std::fabs(c[1][b]) + 64 * std::fabs(c[2][b]) + 512 * std::fabs(c[3][b]);
        return static_cast<std::ptrdiff_t>(std::min(h, 1e9f)) + 2;
    };
    const std::ptrdiff_t p = plan.ip[b] - buffer.p0, q = plan.iq[b] - buffer.q0;
    const std::ptrdiff_t dp = half(plan.p) + taps / 2, dq = half(plan.q) + taps / 2;
    return {q - dq, q + dq + 1, p - dp, p + dp + 1};
}

/// The same of a straight block in the row that its weights along q are expanded about.
Box touched_straight(const Buffer& buffer, const ResamplePlan& center, int b, int taps) {
    const float h = 8 * std::fabs(center.q[1][b]) + 64 * std::fabs(center.q[2][b]) +
                    512 * std::fabs(center.q[3][b]) + 0.01f;
    const auto part = [&](float to) { return static_cast<std::ptrdiff_t>(std::floor(center.q[0][b] + to)); };
    const std::ptrdiff_t p = center.ip[b] - buffer.p0, q = center.iq[b] - buffer.q0;
    const std::ptrdiff_t before = (taps - 1) / 2, after = taps / 2;
    return {q + part(-h) - before, q + part(h) + after + 1, p - block_columns / 2 - before,
            p + block_columns / 2 + after};
}

Box hull(Box a, Box b) {
    return {std::min(a.y0, b.y0), std::max(a.y1, b.y1), std::min(a.x0, b.x0), std::max(a.x1, b.x1)};
}

/// Sets a flag where a byte of `here` is 1; the others are 0.
void mark(const unsigned char* __restrict__ here, std::ptrdiff_t n, unsigned char flag,
          unsigned char* __restrict__ flags) {
    for (std::ptrdiff_t i = 0; i < n; ++i)
        flags[i] |= static_cast<unsigned char>(here[i] * flag);
}

/// Blocks [b0, b1) of the rows [y0, y1) of one group in one strip.
void resample_group(const Work& work, const Buffer& buffer, std::ptrdiff_t y0, std::ptrdiff_t y1,
                    std::ptrdiff_t strip, int b0, int b1) {
    const ResampleRows& row = rows().resample;
    const Map& map = work.turn.map;
    const int taps = work.kernel.taps, n = static_cast<int>(y1 - y0);
    const std::ptrdiff_t center = round_down(y0, work.group_rows) + work.group_rows / 2;
    const double first = static_cast<double>(strip + 8) - map.origin_x;
    const auto line = [&](std::ptrdiff_t y) {
        const double v = static_cast<double>(y) - map.origin_y;
        ResampleLine at = work.linear ? work.line : line_at(map, v, work.folded);
        if (work.linear)
            at.p[0] += v * map.x[2], at.q[0] += v * map.y[2];
        if (taps == 1)
            at.p[0] += 0.5, at.q[0] += 0.5;
        return at;
    };
    alignas(64) ResamplePlan middle;
    row.plan(line(center), first, middle);
    std::array<bool, 16> straight{};
    for (int b = b0; b < b1; ++b)
        straight[b] = work.linear ? work.straight
                                  : is_straight(work, middle, b, first + 16.0 * b,
                                                static_cast<double>(center) - map.origin_y);
    const auto any_of = [&](bool wanted) {
        return std::any_of(straight.begin() + b0, straight.begin() + b1,
                           [=](bool each) { return each == wanted; });
    };
    alignas(64) std::array<ResampleAlong, most_group_rows> along;
    alignas(64) std::array<ResamplePlan, most_group_rows> plans;
    bool planned = false;
    const auto plan_rows = [&] {
        for (int r = 0; r < n && !planned; ++r)
            row.plan(line(y0 + r), first, plans[r]);
        planned = true;
    };
    if (any_of(true))
        for (int r = 0; r < n; ++r)
            row.along[taps / 2](line(y0 + r), first, work.kernel, work.curved, along[r]);
    if (any_of(false))
        plan_rows();

    alignas(64) float out[most_group_rows * block_columns];
    alignas(64) unsigned char factors[most_group_rows * block_columns],
        interpolated[most_group_rows * block_columns];
    std::array<unsigned char, most_group_rows> masked{};
    const float back = work.section.level - work.section.sky;
    const float gain = work.section.scale * middle.jacobian[0][0], area = middle.jacobian[0][0] * middle.jacobian[0][0];
    ResampleTask task{.kernel = &work.kernel,
                      .center = &middle,
                      .along = along.data(),
                      .plans = plans.data(),
                      .masked = masked.data(),
                      .block = 0,
                      .rows = n,
                      .first = static_cast<int>(y0 - center),
                      .reach = 0.375f * static_cast<float>(work.group_rows),
                      .curved = work.curved,
                      .even = false,
                      .pairs = false,
                      .buffer = buffer.data(),
                      .stride = buffer.width,
                      .height = buffer.height,
                      .width = buffer.width,
                      .p0 = static_cast<std::int32_t>(buffer.p0),
                      .q0 = static_cast<std::int32_t>(buffer.q0),
                      .max_lost = work.how.max_lost,
                      .scale = work.section.scale,
                      .offset = work.section.offset,
                      .back = back,
                      .per_area = work.factor,
                      .gain = gain,
                      .base = gain * back + work.section.offset,
                      .factor = work.factor * area,
                      .square = work.how.square,
                      .out = out,
                      .factors = factors,
                      .out_stride = block_columns,
                      .factor_stride = block_columns,
                      .next_out = out,
                      .next_factors = factors,
                      .interpolated = interpolated};
    std::array<Box, 16> near;
    Box under{0, 0, 0, 0}; // the straight blocks, in the buffer
    for (int b = b0; b < b1; ++b)
        if (straight[b]) {
            near[b] = touched_straight(buffer, middle, b, taps);
            under = under.empty() ? near[b] : hull(under, near[b]);
        }
    const std::ptrdiff_t below = y0 - center;
    const std::uint64_t known = buffer.any_missing ? buffer.cells_of(under.y0 + below, under.y1 + below + n) : 0;
    for (int b = b0; b < b1; ++b) {
        task.block = b;
        task.pairs = std::fabs(middle.drift[0][b]) + 8 * std::fabs(middle.drift[1][b]) < Work::pair_limit;
        const auto touch = [&](int r) -> Box {
            if (!straight[b])
                return touched(buffer, plans[r], b, taps);
            const std::ptrdiff_t dq = below + r, dp = along[r].ip[b] - middle.ip[b];
            return {near[b].y0 + dq, near[b].y1 + dq, near[b].x0 + dp, near[b].x1 + dp};
        };
        const Box all = hull(touch(0), touch(n - 1));
        const std::ptrdiff_t x = strip + b * block_columns;
        const std::ptrdiff_t x0 = std::max(x, work.tile.x0),
                             count = std::min(x + block_columns, work.tile.x1) - x0;
        if (common(all, buffer.frame).empty()) {
            write_missing(work, {y0, y1, x0, x0 + count});
            continue;
        }
        // A straight block that leaves the buffer leaves the frame: the general way finds nothing there.
        const bool inside = all.x0 >= 0 && all.x1 + block_columns <= buffer.width && all.y0 >= 0 &&
                            all.y1 <= buffer.height;
        const bool some = work.how.square || (straight[b] ? buffer.missing(all, known) : buffer.missing(all));
        masked.fill(work.how.square);
        for (int r = 0; some && r < n; ++r)
            masked[r] = work.how.square || buffer.missing(touch(r));

        const std::ptrdiff_t row0 = y0 - work.tile.y0, at = x0 - work.tile.x0;
        const bool direct = count == block_columns && work.to.out.together(at, count) == count;
        task.out = direct ? work.to.out.at(row0, at) : out;
        task.out_stride = direct ? work.to.out.row_stride : block_columns;
        task.factors = direct && work.to.factor ? work.to.factor.at(row0, at) : factors;
        task.factor_stride = direct && work.to.factor ? work.to.factor.row_stride : block_columns;

        const std::ptrdiff_t next = std::min(at + block_columns, work.tile.x1 - work.tile.x0 - 1);
        task.next_out = work.to.out.at(row0, next);
        task.next_factors = work.to.factor ? work.to.factor.at(row0, next) : factors;
        task.even = work.linear && !some && along[0].ip[b] == along[n - 1].ip[b];
        if (straight[b] && inside) {
            row.straight[taps / 2](task);
        } else {
            plan_rows();
            row.free[taps / 2](task);
        }

        for (int r = 0; r < n && (some || !direct); ++r) {
            const std::ptrdiff_t from = r * block_columns + x0 - x;
            if (!direct)
                runs(work.to.out, at, at + count, [&](std::ptrdiff_t to, std::ptrdiff_t m) {
                    std::copy_n(out + from + (to - at), m, work.to.out.at(row0 + r, to));
                    if (work.to.factor)
                        std::copy_n(factors + from + (to - at), m, work.to.factor.at(row0 + r, to));
                });
            if (work.to.flags && masked[r])
                mark(interpolated + from, count, flag_interpolated, &work.to.flags(row0 + r, at));
        }
    }
}

/// Takes a sky surface off a part of the output.
void subtract_sky(const Work& work, Box part) {
    const Section& s = work.section;
    const std::ptrdiff_t nx = part.x1 - part.x0, x0 = part.x0 - work.tile.x0;
    Surface surface(s.sky_mesh, s.sky_ny, s.sky_nx, part.x0 - s.sky_x, part.x1 - s.sky_x, Surface::Shape::cubic);
    std::array<float, strip_columns> level;
    for (std::ptrdiff_t y = part.y0; y < part.y1; ++y) {
        surface.seek(y - s.sky_y);
        rows().background.blend(surface.rows(), surface.weights(), nx, level.data());
        runs(work.to.out, x0, x0 + nx, [&](std::ptrdiff_t x, std::ptrdiff_t n) {
            float* const out = work.to.out.at(y - work.tile.y0, x);
            for (std::ptrdiff_t i = 0; i < n; ++i)
                out[i] -= level[x - x0 + i];
        });
    }
}

void resample_blocks(const Work& work, const Map& map) {
    // Parts whose piece of the frame stays in the second-level cache, of like height.
    constexpr std::ptrdiff_t most_rows = 256, ring = 48;
    const Box tile = work.tile;
    const Box frame = work.turn({0, work.section.ny, 0, work.section.nx});
    const int taps = work.kernel.taps;
    const std::ptrdiff_t top = round_down(tile.y0, most_group_rows), count = (tile.y1 - top - 1) / most_rows + 1;
    const std::ptrdiff_t part_rows = round_up((tile.y1 - top + count - 1) / count, most_group_rows);
    Buffer buffer;
    for (std::ptrdiff_t y = top; y < tile.y1; y += part_rows)
        for (std::ptrdiff_t x = round_down(tile.x0, strip_columns); x < tile.x1; x += strip_columns) {
            const Box part = common(tile, {y, y + part_rows, x, x + strip_columns});
            const Box need = footprint(map, part, work.how.kernel);
            if (common(need, {0, work.section.ny, 0, work.section.nx}).empty()) {
                write_missing(work, part);
                continue;
            }
            Box box = work.turn(need);
            // One more row and column on either side, and room for whole vectors on the right; nothing that
            // is further from the frame than a ring of missing pixels.
            box = {box.y0 - taps - 2, box.y1 + taps + 2, box.x0 - taps - 4, box.x1 + taps + 4 + 32};
            box = common(box, {frame.y0 - ring, frame.y1 + ring, frame.x0 - ring, frame.x1 + ring + 32});
            buffer.fill(work.section, work.turn, box, frame);
            const int b0 = static_cast<int>((part.x0 - x) / block_columns);
            const int b1 = static_cast<int>((part.x1 - x + block_columns - 1) / block_columns);
            for (std::ptrdiff_t group = round_down(part.y0, work.group_rows); group < part.y1;
                 group += work.group_rows)
                resample_group(work, buffer, std::max(group, part.y0),
                               std::min(group + work.group_rows, part.y1), x, b0, b1);
            if (work.section.sky_mesh)
                subtract_sky(work, part);
        }
}

// --- area

struct Point {
    double x, y;
};

using Polygon = std::array<Point, 16>;

/// The part of a convex polygon on one side of a line: sign * (coordinate - at) >= 0.
int clip(const Polygon& in, int n, Polygon& out, double Point::* axis, double at, double sign) {
    int m = 0;
    for (int i = 0; i < n; ++i) {
        const Point a = in[i], b = in[(i + 1) % n];
        const double da = sign * (a.*axis - at), db = sign * (b.*axis - at);
        if (da >= 0)
            out[m++] = a;
        if ((da >= 0) != (db >= 0)) {
            const double t = da / (da - db);
            out[m++] = {a.x + t * (b.x - a.x), a.y + t * (b.y - a.y)};
        }
    }
    return m;
}

double area_of(const Polygon& p, int n) {
    double sum = 0;
    for (int i = 1; i + 1 < n; ++i)
        sum += (p[i].x - p[0].x) * (p[i + 1].y - p[0].y) - (p[i + 1].x - p[0].x) * (p[i].y - p[0].y);
    return std::fabs(sum) / 2;
}

/// One output pixel from the overlaps of its quadrilateral with the pixels of the frame.
void area_pixel(const Work& work, const std::array<Point, 4>& corners, double jacobian, std::ptrdiff_t y,
                std::ptrdiff_t x) {
    const Section& s = work.section;
    double x0 = corners[0].x, x1 = x0, y0 = corners[0].y, y1 = y0;
    for (const Point& c : corners) {
        x0 = std::min(x0, c.x), x1 = std::max(x1, c.x);
        y0 = std::min(y0, c.y), y1 = std::max(y1, c.y);
    }
    Polygon quad{}, half{}, column{}, part{}, cell{};
    std::ranges::copy(corners, quad.begin());
    const double total = area_of(quad, 4);
    double good = 0, value = 0, squares = 0;
    const std::ptrdiff_t right = std::min(whole(x1 + 0.5), s.nx - 1),
                         bottom = std::min(whole(y1 + 0.5), s.ny - 1);
    for (std::ptrdiff_t i = std::max<std::ptrdiff_t>(whole(x0 + 0.5), 0); i <= right; ++i) {
        const int n = clip(half, clip(quad, 4, half, &Point::x, static_cast<double>(i) - 0.5, 1), column,
                           &Point::x, static_cast<double>(i) + 0.5, -1);
        for (std::ptrdiff_t j = std::max<std::ptrdiff_t>(whole(y0 + 0.5), 0); n > 2 && j <= bottom; ++j) {
            const int m = clip(part, clip(column, n, part, &Point::y, static_cast<double>(j) - 0.5, 1), cell,
                               &Point::y, static_cast<double>(j) + 0.5, -1);
            const double k = m > 2 ? area_of(cell, m) : 0;
            const float pixel = s.pixels(j - s.y0, i - s.x0);
            if (k <= 0 || !std::isfinite(pixel))
                continue;
            good += k;
            squares += k * k;
            value += (work.how.square ? k * k : k) * (static_cast<double>(pixel) - s.level);
        }
    }
    const bool gone = !(good > 0) || total - good > work.how.max_lost * total;
    const double norm = work.how.square ? good * good : good,
                 scale = work.how.square ? jacobian * jacobian : jacobian;
    *work.to.out.at(y, x) =
        gone ? nan : static_cast<float>(s.scale * scale * (value / norm + (s.level - s.sky)) + s.offset);
    if (work.to.factor) {
        const double factor = gone ? 1 : work.factor * jacobian * jacobian * squares / (good * good);
        *work.to.factor.at(y, x) = static_cast<unsigned char>(std::clamp(std::round(factor), 1.0, 255.0));
    }
    if (work.to.flags && !gone && total - good > 1e-6 * total)
        work.to.flags(y, x) |= flag_interpolated;
}

void resample_area(const Work& work, const Map& map) {
    const Box tile = work.tile;
    const std::ptrdiff_t nx = tile.x1 - tile.x0;
    const auto position = [&map](double x, double y) {
        const double u = x - map.origin_x, v = y - map.origin_y;
        return Point{std::clamp(evaluate(map.x, u, v), -1e9, 1e9),
                     std::clamp(evaluate(map.y, u, v), -1e9, 1e9)};
    };
    std::vector<Point> above(static_cast<std::size_t>(nx + 1)), below(above.size());
    const auto corners = [&](std::vector<Point>& row, std::ptrdiff_t y) {
        for (std::ptrdiff_t i = 0; i <= nx; ++i)
            row[i] = position(static_cast<double>(tile.x0 + i) - 0.5, static_cast<double>(y) - 0.5);
    };
    corners(below, tile.y0);
    for (std::ptrdiff_t y = tile.y0; y < tile.y1; ++y) {
        std::swap(above, below);
        corners(below, y + 1);
        for (std::ptrdiff_t i = 0; i < nx; ++i) {
            const double u = static_cast<double>(tile.x0 + i) - map.origin_x,
                         v = static_cast<double>(y) - map.origin_y;
            area_pixel(work, {above[i], above[i + 1], below[i + 1], below[i]},
                       std::fabs(determinant(map, u, v)), y - tile.y0, i);
        }
    }
}

// --- saturation

/// Flag and count the outputs of which a saturated pixel is one of the nearest input pixels: 2 x 2, or those
/// that the output pixel touches where it is larger.
void paint_saturated(const Work& work, const Map& map) {
    const Box tile = work.tile;
    const std::ptrdiff_t nx = tile.x1 - tile.x0;
    // A pixel counts once, however many saturated ones are near: outputs that were seen, in order.
    std::vector<std::ptrdiff_t> seen;
    const double mu = 0.5 * static_cast<double>(tile.x0 + tile.x1) - map.origin_x;
    const double mv = 0.5 * static_cast<double>(tile.y0 + tile.y1) - map.origin_y;
    const Box window = footprint(map, tile, work.how.kernel);
    for (std::ptrdiff_t k = 0; k + 1 < work.section.saturated.size; k += 2) {
        const double x = work.section.saturated[k], y = work.section.saturated[k + 1];
        if (x < static_cast<double>(window.x0) || x >= static_cast<double>(window.x1) ||
            y < static_cast<double>(window.y0) || y >= static_cast<double>(window.y1))
            continue;
        double u = mu, v = mv, a = 0, b = 0, c = 0, d = 0, det = 0;
        for (int round = 0; round < 30; ++round) { // Newton
            a = derivative_u(map.x, u, v), b = derivative_v(map.x, u, v);
            c = derivative_u(map.y, u, v), d = derivative_v(map.y, u, v);
            det = a * d - b * c;
            const double ex = x - evaluate(map.x, u, v), ey = y - evaluate(map.y, u, v);
            const double du = (d * ex - b * ey) / det, dv = (a * ey - c * ex) / det;
            u += du, v += dv;
            if (!(std::fabs(du) + std::fabs(dv) > 1e-6))
                break;
        }
        double reach_x = work.kernel.taps == 1 ? 0.5 : 1, reach_y = reach_x;
        if (work.how.kernel == Kernel::area) {
            reach_x = 0.5 + 0.5 * (std::fabs(a) + std::fabs(b));
            reach_y = 0.5 + 0.5 * (std::fabs(c) + std::fabs(d));
        }
        const double wide = (std::fabs(d) * reach_x + std::fabs(b) * reach_y) / std::fabs(det) + 1;
        const double high = (std::fabs(a) * reach_y + std::fabs(c) * reach_x) / std::fabs(det) + 1;
        const double cx = u + map.origin_x, cy = v + map.origin_y;
        if (!std::isfinite(cx + cy + wide + high))
            continue;
        const Box box =
            common(tile, {whole(cy - high), whole(cy + high) + 1, whole(cx - wide), whole(cx + wide) + 1});
        for (std::ptrdiff_t j = box.y0; j < box.y1; ++j)
            for (std::ptrdiff_t i = box.x0; i < box.x1; ++i) {
                const double iu = static_cast<double>(i) - map.origin_x,
                             jv = static_cast<double>(j) - map.origin_y;
                if (std::fabs(evaluate(map.x, iu, jv) - x) < reach_x &&
                    std::fabs(evaluate(map.y, iu, jv) - y) < reach_y)
                    seen.push_back((j - tile.y0) * nx + (i - tile.x0));
            }
    }
    std::ranges::sort(seen);
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (const std::ptrdiff_t at : seen) {
        if (work.to.saturated_count)
            ++work.to.saturated_count(at / nx, at % nx);
        if (work.to.flags)
            work.to.flags(at / nx, at % nx) |= flag_saturated;
    }
}

} // namespace

Box input_window(const Map& map, Box tile, std::ptrdiff_t ny, std::ptrdiff_t nx, Kernel kernel) {
    if (tile.empty())
        return {0, 0, 0, 0};
    return common(footprint(map, tile, kernel), {0, ny, 0, nx});
}

void resample_tile(const Section& section, const Map& map, Box tile, const ResampleHow& how,
                   const Resampled& to) {
    if (tile.empty())
        return;
    const Box need = input_window(map, tile, section.ny, section.nx, how.kernel);
    const double det = determinant(map, 0, 0);
    Work work{.section = section,
              .how = how,
              .to = to,
              .kernel = expanded(how.kernel),
              .tile = tile,
              .turn = Turn(map),
              .folded = false,
              .linear = is_linear(map),
              .factor = static_cast<float>(255 / (det * det)),
              .line = {},
              .straight = false,
              .curved = true,
              .group_rows = 8};
    if (need.empty())
        return write_missing(work, tile);
    if (need.y0 < section.y0 || need.x0 < section.x0 || need.y1 > section.y0 + section.pixels.ny ||
        need.x1 > section.x0 + section.pixels.nx)
        throw std::invalid_argument("the section does not hold the tile's input window, rows " +
                                    std::to_string(need.y0) + " to " + std::to_string(need.y1) +
                                    " and columns " + std::to_string(need.x0) + " to " +
                                    std::to_string(need.x1));
    if (how.kernel == Kernel::area) {
        resample_area(work, map);
        for (std::ptrdiff_t x = tile.x0; section.sky_mesh && x < tile.x1; x += strip_columns)
            subtract_sky(work, {tile.y0, tile.y1, x, std::min(x + strip_columns, tile.x1)});
    } else {
        const Map& turned = work.turn.map;
        work.folded = determinant(turned, 0, 0) < 0;
        if (work.linear) {
            work.curved = std::fabs(turned.x[1] - 1) > Work::gentle;
            work.group_rows = std::fabs(turned.y[2] - 1) > Work::gentle ? 8 : most_group_rows;
            work.line = line_at(turned, 0, work.folded);
            ResamplePlan plan;
            rows().resample.plan(work.line, 0, plan);
            work.straight = is_straight(work, plan, 0, 0, 0);
        }
        resample_blocks(work, map);
    }
    if (section.saturated && (to.flags || to.saturated_count))
        paint_saturated(work, map);
}

} // namespace fastack
