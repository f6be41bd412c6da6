#include "fastack/background.hpp"

#include "rows/rows.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fastack {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float nan = std::numeric_limits<float>::quiet_NaN();
constexpr float mad_to_sigma = 1.4826f;
constexpr float core_width = 1.0f;  // sigma: Huber's psi between the median (0) and the mean (infinity)
constexpr float mode_factor = 3.2f; // with that psi; equals 2.5 with the median on fields of faint stars
constexpr float converged = 2e-3f;  // sigma: a tenth of the error of the mean of a 64x64 cell
constexpr std::ptrdiff_t fewest = 8;
constexpr float fewest_part = 0.05f; // of a cell's pixels

/// The samples of one cell, padded for the row functions.
struct Cell {
    float* samples = nullptr;
    std::ptrdiff_t n = 0, padded = 0;
};

/// A robust middle value in one pass: the median of nine, of the medians of nine, ... (Rousseeuw & Bassett
/// 1990, JASA 85, 97: the remedian). Spoils nothing in `x`; `scratch` takes n / 8 + 27 values.
float remedian(const float* x, std::ptrdiff_t n, float* scratch) {
    while (n >= 27) {
        const std::ptrdiff_t part = n / 9;
        rows().background.median_of_nine(x, part, scratch);
        x = scratch;
        scratch += part;
        n = part;
    }
    std::copy(x, x + n, scratch); // at most 26
    std::nth_element(scratch, scratch + n / 2, scratch + n);
    return scratch[n / 2];
}

/// Mean, smoothed median, noise of one cell.
struct Statistics {
    float mean = nan, median = nan, noise = nan;
};

/// Ratio of the standard deviation of a Gaussian cut at +-k to the uncut one.
float cut_sigma(float k) {
    const double density = std::exp(-0.5 * k * k) / std::sqrt(2 * M_PI);
    return static_cast<float>(std::sqrt(1 - 2 * k * density / std::erf(k / M_SQRT2)));
}

Statistics statistics(const Cell& cell, Clip clip, float* scratch) {
    const BackgroundRows& row = rows().background;
    const float* x = cell.samples;
    // A quarter of the samples is enough to start from.
    const std::ptrdiff_t some = cell.n < 1024 ? cell.n : cell.n / 4 / cell_lanes * cell_lanes;
    float centre = remedian(x, some, scratch);
    float* apart = scratch;
    row.distance(x, some, centre, apart);
    float sigma = mad_to_sigma * remedian(apart, some, apart + some);
    const float cut = cut_sigma(clip.limit);
    const bool coarse = !(sigma > 0);
    if (coarse) { // more than half of the samples are equal: coarse numbers, or no noise at all
        const CellMoments all = row.moments(x, cell.padded, centre, std::numeric_limits<float>::max());
        const float mean = all.sum / all.n;
        const float variance = all.sum2 / all.n - mean * mean;
        if (!(variance > 0))
            return {centre, centre, 0.0f};
        sigma = std::sqrt(variance);
    }
    const bool quick = !coarse && some < cell.n;
    for (int round = 0; round < clip.rounds; ++round) {
        const CellMoments m = row.moments(x, quick && round < 2 ? some : cell.padded, centre, clip.limit * sigma);
        if (m.n < 2)
            break;
        const float shift = m.sum / m.n;
        const float next = std::sqrt(std::max(0.0f, m.sum2 / m.n - shift * shift) * m.n / (m.n - 1)) / cut;
        const bool settled = std::fabs(shift) < converged * sigma && std::fabs(next - sigma) < 5 * converged * sigma;
        centre += shift;
        if (!(next > 0))
            return {centre, centre, 0.0f};
        sigma = next;
        if (settled && !(quick && round < 2))
            break;
    }
    const CellCore core = row.core(x, cell.padded, centre, clip.limit * sigma, core_width * sigma);
    const float median = core.n_core > 0 && !coarse ? centre + core.sum / core.n_core : centre;
    return {centre, median, sigma};
}

/// The cells between the same rows, some at a time: rows are read along, and the second-level cache holds the samples.
class CellRow {
  public:
    /// `step`: every so many rows of the image one is looked at.
    CellRow(Image<const float> image, Image<const unsigned char> mask, Cells down, Cells across, std::ptrdiff_t step)
        : image_(image), mask_(mask), across_(across), step_(step),
          room_((down.size / down.n + 1) * (across.size / across.n + 1) + cell_lanes), samples_(at_once * room_) {}

    /// Cells [first, end) between rows y0 and y1; samples of every fourth row come first.
    void read(std::ptrdiff_t y0, std::ptrdiff_t y1, std::ptrdiff_t first, std::ptrdiff_t end) {
        first_ = first;
        float* out[at_once];
        std::ptrdiff_t edge[at_once + 1];
        int missing[at_once] = {};
        for (std::ptrdiff_t i = first; i <= end; ++i)
            edge[i - first] = across_.edge(i) - across_.edge(first);
        const std::ptrdiff_t x0 = across_.edge(first), top = (y0 + step_ - 1) / step_ * step_,
                             rows_of_all = (y1 - top + step_ - 1) / step_;
        for (std::ptrdiff_t y = top; y < y1; y += step_) {
            const std::ptrdiff_t k = (y - top) / step_, quarter = k % 4;
            const std::ptrdiff_t before = quarter * (rows_of_all / 4) + std::min(quarter, rows_of_all % 4) + k / 4;
            for (std::ptrdiff_t i = 0; i < end - first; ++i)
                out[i] = samples_.data() + i * room_ + before * (edge[i + 1] - edge[i]);
            rows().background.deal(image_.row(y) + x0, edge, end - first,
                                   y + step_ < image_.ny ? step_ * image_.stride : 0, out, missing);
            for (std::ptrdiff_t i = 0; mask_ && i < end - first; ++i)
                for (std::ptrdiff_t x = edge[i]; x < edge[i + 1]; ++x)
                    if (mask_(y, x0 + x)) {
                        out[i][x - edge[i]] = nan;
                        ++missing[i];
                    }
        }
        for (std::ptrdiff_t i = 0; i < end - first; ++i) {
            Cell& cell = cells_[i];
            cell.samples = samples_.data() + i * room_;
            cell.n = rows_of_all * (edge[i + 1] - edge[i]);
            if (missing[i])
                cell.n =
                    std::remove_if(cell.samples, cell.samples + cell.n, [](float v) { return !std::isfinite(v); }) -
                    cell.samples;
            cell.padded = (cell.n + cell_lanes - 1) / cell_lanes * cell_lanes;
            std::fill(cell.samples + cell.n, cell.samples + cell.padded, infinity);
        }
    }

    const Cell& operator[](std::ptrdiff_t i) const { return cells_[i - first_]; }

    static constexpr std::ptrdiff_t at_once = 16;

  private:
    Image<const float> image_;
    Image<const unsigned char> mask_;
    Cells across_;
    std::ptrdiff_t step_, room_, first_ = 0;
    std::vector<float> samples_;
    Cell cells_[at_once];
};

float median_of(float* values, int n) { // of nine at most
    for (int i = 1; i < n; ++i)
        for (int k = i; k > 0 && values[k] < values[k - 1]; --k)
            std::swap(values[k], values[k - 1]);
    return n % 2 ? values[n / 2] : 0.5f * (values[n / 2 - 1] + values[n / 2]);
}

/// Fills empty cells with the mean of their filled neighbours, ring by ring.
void fill_gaps(Image<float> mesh) {
    std::vector<float> next(mesh.ny * mesh.nx);
    for (std::ptrdiff_t round = 0; round < mesh.ny + mesh.nx; ++round) {
        bool gaps = false;
        for (std::ptrdiff_t j = 0; j < mesh.ny; ++j)
            for (std::ptrdiff_t i = 0; i < mesh.nx; ++i) {
                float sum = 0, n = 0;
                if (const float own = mesh(j, i); !std::isnan(own)) {
                    next[j * mesh.nx + i] = own;
                    continue;
                }
                gaps = true;
                for (std::ptrdiff_t v = std::max<std::ptrdiff_t>(j - 1, 0); v < std::min(j + 2, mesh.ny); ++v)
                    for (std::ptrdiff_t u = std::max<std::ptrdiff_t>(i - 1, 0); u < std::min(i + 2, mesh.nx); ++u)
                        if (!std::isnan(mesh(v, u))) {
                            sum += mesh(v, u);
                            n += 1;
                        }
                next[j * mesh.nx + i] = n > 0 ? sum / n : nan;
            }
        if (!gaps)
            return;
        for (std::ptrdiff_t j = 0; j < mesh.ny; ++j)
            std::copy_n(next.data() + j * mesh.nx, mesh.nx, mesh.row(j));
    }
}

/// Median of a cell and the four means of its opposite neighbours: unlike the plain 3x3 median it leaves
/// every plane as it is. A cell at the border, which has one pair only, is kept unless it exceeds that pair
/// by `margin` of its noise; a corner is kept.
void smooth(Image<float> mesh, Image<float> noise, float margin) {
    std::vector<float> next(mesh.ny * mesh.nx);
    constexpr int step[4][2] = {{0, 1}, {1, 0}, {1, 1}, {1, -1}};
    for (std::ptrdiff_t j = 0; j < mesh.ny; ++j)
        for (std::ptrdiff_t i = 0; i < mesh.nx; ++i) {
            float values[5] = {mesh(j, i)};
            int n = 1;
            for (const auto& [dy, dx] : step) {
                if (j < dy || j + dy >= mesh.ny || (dx != 0 && (i < 1 || i + 1 >= mesh.nx)))
                    continue;
                values[n++] = 0.5f * (mesh(j - dy, i - dx) + mesh(j + dy, i + dx));
            }
            float& out = next[j * mesh.nx + i];
            out = mesh(j, i);
            if (n == 5)
                out = median_of(values, n);
            else if (n == 2 && values[0] > values[1] + margin * noise(j, i))
                out = values[1];
        }
    for (std::ptrdiff_t j = 0; j < mesh.ny; ++j)
        std::copy_n(next.data() + j * mesh.nx, mesh.nx, mesh.row(j));
}

/// Mean of the 3x3 neighbours' values without their extremes, cut at the border.
float local_middle(const std::vector<float>& mesh, std::ptrdiff_t ny, std::ptrdiff_t nx, std::ptrdiff_t j,
                   std::ptrdiff_t i) {
    float values[9];
    int n = 0;
    for (std::ptrdiff_t v = std::max<std::ptrdiff_t>(j - 1, 0); v < std::min(j + 2, ny); ++v)
        for (std::ptrdiff_t u = std::max<std::ptrdiff_t>(i - 1, 0); u < std::min(i + 2, nx); ++u)
            if (!std::isnan(mesh[v * nx + u]))
                values[n++] = mesh[v * nx + u];
    return n ? median_of(values, n) : 0.0f;
}

float value_of_rank(std::vector<float>& values, std::ptrdiff_t rank) {
    std::nth_element(values.begin(), values.begin() + rank, values.end());
    return values[rank];
}

/// The value of a rank and its place among the others; `low` and `high` are the nearest other values, infinite where
/// there are none.
struct Ranked {
    float value, low = -infinity, high = infinity;
    std::ptrdiff_t below = 0, equal = 0;

    Ranked(std::vector<float>& values, std::ptrdiff_t rank) : value(value_of_rank(values, rank)) {
        for (const float v : values) {
            below += v < value;
            equal += v == value;
            low = v < value && v > low ? v : low;
            high = v > value && v < high ? v : high;
        }
    }
};

/// The median; only what lies about the median of every sixteenth value is looked at closely.
Ranked find_median(std::vector<float>& values) {
    const auto n = static_cast<std::ptrdiff_t>(values.size());
    std::vector<float> few;
    static thread_local std::vector<float> near; // kept from frame to frame
    near.resize(n);
    for (std::ptrdiff_t i = 0; i < n; i += 16)
        few.push_back(values[i]);
    const float guess = value_of_rank(few, static_cast<std::ptrdiff_t>(few.size() / 2));
    const float from = 0.9f * guess, to = 1.1f * guess;
    std::ptrdiff_t below = 0, inside = 0;
    for (const float v : values) {
        below += v < from;
        near[inside] = v;
        inside += v >= from && v <= to;
    }
    near.resize(inside);
    if (below <= n / 2 && n / 2 < below + inside) {
        Ranked median(near, n / 2 - below);
        median.below += below;
        if (std::isfinite(median.low) && std::isfinite(median.high))
            return median;
    }
    return {values, n / 2};
}

/// Median of values that may come in steps (integer pixels): where many are equal, within their bin.
double median_of_steps(std::vector<float>& values) {
    const Ranked median = find_median(values);
    const auto n = static_cast<double>(values.size()), equal = static_cast<double>(median.equal);
    const auto value = static_cast<double>(median.value);
    if (equal < 0.02 * n)
        return value;
    const double from = std::isfinite(median.low) ? 0.5 * (static_cast<double>(median.low) + value) : value;
    const double to = std::isfinite(median.high) ? 0.5 * (static_cast<double>(median.high) + value) : value;
    return from + (to - from) * std::min(1.0, (0.5 * n - static_cast<double>(median.below)) / equal);
}

} // namespace

Cells make_cells(std::ptrdiff_t size, std::ptrdiff_t cell) {
    return {size, std::max<std::ptrdiff_t>(1, (size + cell / 2) / cell)};
}

void estimate_background(Image<const float> image, Image<const unsigned char> mask, Clip clip, std::ptrdiff_t row_step,
                         Image<float> level, Image<float> noise) {
    const Cells down{image.ny, level.ny}, across{image.nx, level.nx};
    // never so far apart that a cell has less than eight rows
    const std::ptrdiff_t step =
        std::clamp<std::ptrdiff_t>(row_step, 1, std::max<std::ptrdiff_t>(image.ny / down.n / 8, 1));
    CellRow cells(image, mask, down, across, step);
    const std::ptrdiff_t most = (image.ny / down.n + 1) * (image.nx / across.n + 1);
    std::vector<float> scratch(most + most / 8 + 64);
    std::vector<float> skew(level.ny * level.nx, nan); // (mean - median) / noise
    for (std::ptrdiff_t j = 0; j < down.n; ++j)
        for (std::ptrdiff_t i = 0; i < across.n; ++i) {
            if (i % CellRow::at_once == 0)
                cells.read(down.edge(j), down.edge(j + 1), i, std::min(i + CellRow::at_once, across.n));
            const Cell& cell = cells[i];
            const auto area =
                static_cast<float>((down.edge(j + 1) - down.edge(j)) * (across.edge(i + 1) - across.edge(i)) / step);
            level(j, i) = noise(j, i) = nan;
            const bool tiny = down.n * across.n == 1 && cell.n > 0; // nothing else to take it from
            if (!tiny && (cell.n < fewest || cell.n < fewest_part * area))
                continue;
            const Statistics found = statistics(cell, clip, scratch.data());
            level(j, i) = found.mean;
            noise(j, i) = found.noise;
            if (found.noise > 0)
                skew[j * level.nx + i] = (found.mean - found.median) / found.noise;
        }
    // Stars too faint to be clipped pull the mean upwards, the median less: mode = mean - 2.5 (mean - median)
    // (Bertin & Arnouts 1996, A&AS 117, 393). Huber's estimate lies between the two. Taken over 3x3 cells,
    // since the noise of the difference is multiplied.
    for (std::ptrdiff_t j = 0; j < level.ny; ++j)
        for (std::ptrdiff_t i = 0; i < level.nx; ++i)
            level(j, i) -= mode_factor * local_middle(skew, level.ny, level.nx, j, i) * noise(j, i);
    fill_gaps(level);
    fill_gaps(noise);
    smooth(level, noise, 0.1f);
    smooth(noise, noise, 0.1f);
}

/// Pairs of pixels to either side of the middle of a second difference whose levels tell of a star there, and sigmas of a
/// pixel by which they may differ.
constexpr std::ptrdiff_t INNER = 1, OUTER = 3;
constexpr double STIRRED = 1.5;

double pixel_noise(Image<const float> image, std::ptrdiff_t some_rows) {
    const std::ptrdiff_t n = std::min(some_rows, image.ny), width = (image.nx - 1) / 2;
    if (width < 1 || n < 1)
        return std::numeric_limits<double>::quiet_NaN();
    // kept from frame to frame: the system would clear the pages every time
    static thread_local std::vector<float> second, around, known, even, odd;
    second.resize(n * width);
    around.assign(n * width, 0.0f);
    even.resize(width + 1);
    odd.resize(width);
    const std::ptrdiff_t first = std::min(width, OUTER);
    const std::ptrdiff_t last = std::max(first, width - OUTER);
    for (std::ptrdiff_t k = 0; k < n; ++k) {
        const float* x = image.row(n > 1 ? k * (image.ny - 1) / (n - 1) : 0);
        for (std::ptrdiff_t i = 0; i < width; ++i) {
            even[i] = x[2 * i];
            odd[i] = x[2 * i + 1];
        }
        even[width] = x[2 * width];
        float *out = second.data() + k * width, *beside = around.data() + k * width;
        for (std::ptrdiff_t i = 0; i < width; ++i) // every other one: overlapping differences add little
            out[i] = std::fabs(odd[i] - 0.5f * (even[i] + even[i + 1]));
        for (std::ptrdiff_t i = first; i < last; ++i)
            beside[i] = 0.5f * std::fabs(odd[i - INNER] + odd[i + INNER] - odd[i - OUTER] - odd[i + OUTER]);
    }
    known.assign(second.begin(), second.end());
    known.erase(std::remove_if(known.begin(), known.end(), [](float v) { return !(v < infinity); }), known.end());
    if (known.empty())
        return std::numeric_limits<double>::quiet_NaN();
    // Each per cent of pixels that stars have changed would raise the median by 1.2 %: it only tells where to cut.
    constexpr double cut = 3.0, kept = 0.9733369246625415; // variance of normal deviates within the cut
    double sigma = 1.482602218505602 * median_of_steps(known);
    // A star that bends the level by less than the cut would still widen it. Pixels further out tell that one is there,
    // and have no noise in common with the difference: it does not matter which differences are left out.
    const auto limit = static_cast<float>(STIRRED * sigma / std::sqrt(1.5));
    std::size_t calm = 0;
    for (std::size_t i = 0; i < second.size(); ++i) { // without a branch, which nobody could predict
        second[calm] = second[i];
        calm += (second[i] < infinity) & (around[i] <= limit);
    }
    if (calm < known.size() / 8) // hardly any sky
        second.swap(known);
    else
        second.resize(calm);
    second.resize((second.size() + cell_lanes - 1) / cell_lanes * cell_lanes, infinity);
    constexpr std::ptrdiff_t together = 128 * cell_lanes; // that single precision may add up
    const auto size = static_cast<std::ptrdiff_t>(second.size());
    for (int round = 0; round < 4; ++round) {
        double sum = 0, count = 0;
        for (std::ptrdiff_t i = 0; i < size; i += together) {
            const CellMoments part = rows().background.moments(second.data() + i, std::min(together, size - i), 0.0f,
                                                               static_cast<float>(cut * sigma));
            sum += static_cast<double>(part.sum2);
            count += static_cast<double>(part.n);
        }
        sigma = std::sqrt(sum / (std::max(count, 1.0) * kept));
    }
    return sigma / std::sqrt(1.5);
}

Surface::Surface(Image<const float> mesh, std::ptrdiff_t ny, std::ptrdiff_t nx, std::ptrdiff_t x0, std::ptrdiff_t x1,
                 Shape shape, std::ptrdiff_t step)
    : mesh_(mesh), cell_y_(Cells{ny, mesh.ny}.width()), cell_x_(Cells{nx, mesh.nx}.width()),
      width_((x1 - x0 + step - 1) / step), shape_(shape), nodes_(mesh.nx + 4), buffer_(4 * width_) {
    for (auto& weights : columns_)
        weights.resize(width_);
    for (std::ptrdiff_t i = 0; i < width_; ++i) {
        const Node column = node(std::min(x0 + i * step, nx - 1), cell_x_);
        for (int k = 0; k < 4; ++k)
            columns_[k][i] = column.weights[k];
        if (runs_.empty() || runs_.back().second != column.first)
            runs_.emplace_back(i + 1, column.first);
        runs_.back().first = i + 1;
    }
}

Surface::Node Surface::node(std::ptrdiff_t pixel, double cell) const {
    const double place = (static_cast<double>(pixel) + 0.5) / cell - 0.5;
    const double first = std::floor(place);
    const auto t = static_cast<float>(place - first);
    Node node{static_cast<std::ptrdiff_t>(first), {0.0f, 1.0f - t, t, 0.0f}};
    if (shape_ == Shape::cubic) {
        node.weights[0] = -0.5f * t * (1 - t) * (1 - t);
        node.weights[1] = (1 - t) * (1 + t - 1.5f * t * t);
        node.weights[2] = t * (0.5f + 2 * t - 1.5f * t * t);
        node.weights[3] = -0.5f * t * t * (1 - t);
    }
    return node;
}

/// Of nodes outside the mesh: on the straight line through the outermost two (cubic), or the outermost's
/// (linear).
float Surface::mesh_at(std::ptrdiff_t j, std::ptrdiff_t i) const {
    if (j >= 0 && j < mesh_.ny && i >= 0 && i < mesh_.nx)
        return mesh_(j, i);
    if (shape_ == Shape::linear || mesh_.ny == 1)
        j = std::clamp<std::ptrdiff_t>(j, 0, mesh_.ny - 1);
    if (shape_ == Shape::linear || mesh_.nx == 1)
        i = std::clamp<std::ptrdiff_t>(i, 0, mesh_.nx - 1);
    if (j < 0)
        return mesh_at(0, i) + static_cast<float>(j) * (mesh_at(1, i) - mesh_at(0, i));
    if (const auto last = mesh_.ny - 1; j > last)
        return mesh_at(last, i) + static_cast<float>(j - last) * (mesh_at(last, i) - mesh_at(last - 1, i));
    if (i < 0)
        return mesh_at(j, 0) + static_cast<float>(i) * (mesh_at(j, 1) - mesh_at(j, 0));
    if (const auto last = mesh_.nx - 1; i > last)
        return mesh_at(j, last) + static_cast<float>(i - last) * (mesh_at(j, last) - mesh_at(j, last - 1));
    return mesh_(j, i);
}

void Surface::fill(std::ptrdiff_t j) {
    const std::ptrdiff_t place = ((j % 4) + 4) % 4;
    held_[place] = j;
    for (std::ptrdiff_t i = -2; i < mesh_.nx + 2; ++i)
        nodes_[i + 2] = mesh_at(j, i);
    float* __restrict__ row = buffer_.data() + place * width_;
    const float *one = columns_[0].data(), *two = columns_[1].data(), *three = columns_[2].data(),
                *four = columns_[3].data();
    std::ptrdiff_t x = 0;
    for (const auto& [end, first] : runs_) {
        const float* at = nodes_.data() + first + 1;
        const float a = at[0], b = at[1], c = at[2], d = at[3];
        for (const std::ptrdiff_t stop = end; x < stop; ++x)
            row[x] = one[x] * a + two[x] * b + three[x] * c + four[x] * d;
    }
}

const float* Surface::slot(std::ptrdiff_t j) const {
    return buffer_.data() + (((j % 4) + 4) % 4) * width_;
}

void Surface::seek(std::ptrdiff_t y) {
    const Node row = node(y, cell_y_);
    for (int k = 0; k < 4; ++k) {
        const std::ptrdiff_t j = row.first - 1 + k;
        if (held_[((j % 4) + 4) % 4] != j)
            fill(j);
        rows_[k] = slot(j);
        weights_[k] = row.weights[k];
    }
}

float Surface::at(std::ptrdiff_t y, std::ptrdiff_t x) const {
    const Node row = node(y, cell_y_), column = node(x, cell_x_);
    const int first = shape_ == Shape::linear ? 1 : 0; // the outer two have no weight
    float sum = 0;
    for (int j = first; j < 4 - first; ++j)
        for (int i = first; i < 4 - first; ++i)
            sum += row.weights[j] * column.weights[i] * mesh_at(row.first - 1 + j, column.first - 1 + i);
    return sum;
}

void render_background(Image<const float> mesh, std::ptrdiff_t ny, std::ptrdiff_t nx, std::ptrdiff_t y0,
                       std::ptrdiff_t x0, Image<float> out) {
    Surface surface(mesh, ny, nx, x0, x0 + out.nx, Surface::Shape::cubic);
    for (std::ptrdiff_t y = 0; y < out.ny; ++y) {
        surface.seek(y0 + y);
        rows().background.blend(surface.rows(), surface.weights(), out.nx, out.row(y));
    }
}

void subtract_background(Image<const float> image, Image<const float> mesh, Image<float> out) {
    Surface surface(mesh, image.ny, image.nx, 0, image.nx, Surface::Shape::cubic);
    std::vector<float> level(image.nx);
    for (std::ptrdiff_t y = 0; y < image.ny; ++y) {
        surface.seek(y);
        rows().background.blend(surface.rows(), surface.weights(), image.nx, level.data());
        rows().background.subtract(image.row(y), level.data(), image.nx, out.row(y));
    }
}

} // namespace fastack
