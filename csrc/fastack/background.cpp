#include "fastack/background.hpp"

#include "rows/rows.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace fastack {
namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float missing = std::numeric_limits<float>::quiet_NaN();
constexpr float mad_to_sigma = 1.4826f;
constexpr float core_width = 1.0f;  // sigma: Huber's psi between the median (0) and the mean (infinity)
constexpr float mode_factor = 3.2f; // with that psi; equals 2.5 with the median on fields of faint stars
constexpr float converged = 2e-3f;  // sigma: a tenth of the error of the mean of a 64x64 cell
constexpr std::ptrdiff_t fewest = 8;
constexpr float fewest_part = 0.05f; // of a cell's pixels

/// The samples of a cell, padded for the row functions, and room for their medians.
struct Cell {
    std::vector<float> samples, scratch;
    std::ptrdiff_t n = 0, padded = 0;

    void resize(std::ptrdiff_t most) {
        samples.resize(most + cell_lanes);
        scratch.resize(most + most / 8 + 64);
    }

    void pad() {
        padded = (n + cell_lanes - 1) / cell_lanes * cell_lanes;
        std::fill(samples.begin() + n, samples.begin() + padded, infinity);
    }
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
    std::copy(x, x + n, scratch);
    std::sort(scratch, scratch + n); // at most 26
    return scratch[n / 2];
}

/// Mean, smoothed median, noise of one cell.
struct Statistics {
    float mean = missing, median = missing, noise = missing;
};

/// Ratio of the standard deviation of a Gaussian cut at +-k to the uncut one.
float cut_sigma(float k) {
    const double density = std::exp(-0.5 * k * k) / std::sqrt(2 * M_PI);
    return static_cast<float>(std::sqrt(1 - 2 * k * density / std::erf(k / M_SQRT2)));
}

Statistics statistics(Cell& cell, Clip clip) {
    const BackgroundRows& row = rows().background;
    const float* x = cell.samples.data();
    float centre = remedian(x, cell.n, cell.scratch.data());
    float* apart = cell.scratch.data();
    row.distance(x, cell.n, centre, apart);
    float sigma = mad_to_sigma * remedian(apart, cell.n, apart + cell.n);
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
    for (int round = 0; round < clip.rounds; ++round) {
        const CellMoments m = row.moments(x, cell.padded, centre, clip.limit * sigma);
        if (m.n < 2)
            break;
        const float shift = m.sum / m.n;
        const float next = std::sqrt(std::max(0.0f, m.sum2 / m.n - shift * shift) * m.n / (m.n - 1)) / cut;
        const bool settled =
            std::fabs(shift) < converged * sigma && std::fabs(next - sigma) < 5 * converged * sigma;
        centre += shift;
        if (!(next > 0))
            return {centre, centre, 0.0f};
        sigma = next;
        if (settled)
            break;
    }
    const CellCore core = row.core(x, cell.padded, centre, clip.limit * sigma, core_width * sigma);
    const float median = core.n_core > 0 && !coarse ? centre + core.sum / core.n_core : centre;
    return {centre, median, sigma};
}

void gather(Image<const float> image, Image<const unsigned char> mask, std::ptrdiff_t y0, std::ptrdiff_t y1,
            std::ptrdiff_t x0, std::ptrdiff_t x1, Cell& cell) {
    const std::ptrdiff_t width = x1 - x0;
    float* out = cell.samples.data();
    std::ptrdiff_t gone = 0;
    for (std::ptrdiff_t y = y0; y < y1; ++y, out += width) {
        // A cell's rows lie on pages of their own, where the processor does not prefetch by itself.
        if (const std::ptrdiff_t ahead = y + 8; ahead < image.ny)
            for (std::ptrdiff_t x = x0; x < x1; x += 16)
                __builtin_prefetch(image.row(ahead) + x);
        gone += rows().background.copy(image.row(y) + x0, width, out);
        if (mask)
            for (std::ptrdiff_t x = 0; x < width; ++x)
                if (mask(y, x0 + x)) {
                    out[x] = missing;
                    ++gone;
                }
    }
    cell.n = out - cell.samples.data();
    if (gone)
        cell.n = std::remove_if(cell.samples.data(), out, [](float v) { return !std::isfinite(v); }) -
                 cell.samples.data();
    cell.pad();
}

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
                    for (std::ptrdiff_t u = std::max<std::ptrdiff_t>(i - 1, 0); u < std::min(i + 2, mesh.nx);
                         ++u)
                        if (!std::isnan(mesh(v, u))) {
                            sum += mesh(v, u);
                            n += 1;
                        }
                next[j * mesh.nx + i] = n > 0 ? sum / n : missing;
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

} // namespace

Cells make_cells(std::ptrdiff_t size, std::ptrdiff_t cell) {
    return {size, std::max<std::ptrdiff_t>(1, (size + cell / 2) / cell)};
}

void estimate_background(Image<const float> image, Image<const unsigned char> mask, Clip clip,
                         Image<float> level, Image<float> noise) {
    const Cells down{image.ny, level.ny}, across{image.nx, level.nx};
    Cell cell;
    cell.resize((image.ny / level.ny + 1) * (image.nx / level.nx + 1));
    std::vector<float> skew(level.ny * level.nx, missing); // (mean - median) / noise
    for (std::ptrdiff_t j = 0; j < down.n; ++j)
        for (std::ptrdiff_t i = 0; i < across.n; ++i) {
            gather(image, mask, down.edge(j), down.edge(j + 1), across.edge(i), across.edge(i + 1), cell);
            const auto area =
                static_cast<float>((down.edge(j + 1) - down.edge(j)) * (across.edge(i + 1) - across.edge(i)));
            level(j, i) = noise(j, i) = missing;
            const bool tiny = down.n * across.n == 1 && cell.n > 0; // nothing else to take it from
            if (!tiny && (cell.n < fewest || cell.n < fewest_part * area))
                continue;
            const Statistics found = statistics(cell, clip);
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

Surface::Surface(Image<const float> mesh, std::ptrdiff_t ny, std::ptrdiff_t nx, std::ptrdiff_t x0,
                 std::ptrdiff_t x1, Shape shape, std::ptrdiff_t step)
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
    if (held_[place] == j)
        return;
    held_[place] = j;
    for (std::ptrdiff_t i = -2; i < mesh_.nx + 2; ++i)
        nodes_[i + 2] = mesh_at(j, i);
    float* row = buffer_.data() + place * width_;
    std::ptrdiff_t x = 0;
    for (const auto& [end, first] : runs_) {
        const float* at = nodes_.data() + first + 1;
        const float a = at[0], b = at[1], c = at[2], d = at[3];
        for (; x < end; ++x)
            row[x] = columns_[0][x] * a + columns_[1][x] * b + columns_[2][x] * c + columns_[3][x] * d;
    }
}

const float* Surface::slot(std::ptrdiff_t j) const {
    return buffer_.data() + (((j % 4) + 4) % 4) * width_;
}

void Surface::seek(std::ptrdiff_t y) {
    const Node row = node(y, cell_y_);
    for (int k = 0; k < 4; ++k) {
        fill(row.first - 1 + k);
        rows_[k] = slot(row.first - 1 + k);
        weights_[k] = row.weights[k];
    }
}

float Surface::at(std::ptrdiff_t y, std::ptrdiff_t x) const {
    const Node row = node(y, cell_y_), column = node(x, cell_x_);
    float sum = 0;
    for (int j = 0; j < 4; ++j)
        for (int i = 0; i < 4; ++i)
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
