#pragma once
// Sky level and noise of one pixel on a coarse mesh, and the smooth surface through it.

#include "fastack/view.hpp"

#include <utility>
#include <vector>

namespace fastack {

struct Clip {
    float limit = 3.0f; ///< sigma
    int rounds = 5;     ///< at most
};

/// Where the cells of one axis begin: cell i covers pixels edge(i) to edge(i + 1).
struct Cells {
    std::ptrdiff_t size = 0; ///< pixels
    std::ptrdiff_t n = 0;    ///< cells, all of the same size to one pixel

    std::ptrdiff_t edge(std::ptrdiff_t i) const { return i * size / n; }
    double width() const { return static_cast<double>(size) / static_cast<double>(n); }
};

/// Number of cells of about `cell` pixels on an axis of `size` pixels: at least one.
Cells make_cells(std::ptrdiff_t size, std::ptrdiff_t cell);

/// Sky level and noise in each cell of `level` and `noise` (same shape). Pixels that are not finite, or where
/// `mask` is not 0, do not count. Where no cell has data everything is NaN. Every `row_step`th row is looked at.
void estimate_background(Image<const float> image, Image<const unsigned char> mask, Clip clip, std::ptrdiff_t row_step,
                         Image<float> level, Image<float> noise);

/// White noise of one pixel, from second differences along `some_rows` rows spread evenly, those beside stars left out;
/// NaN where nothing can be measured.
double pixel_noise(Image<const float> image, std::ptrdiff_t some_rows);

/// A mesh as rows of pixels, from top to bottom: Catmull-Rom cubics between the centres of the cells (linear
/// beyond the outermost), or straight lines. A pixel's value depends on its own position alone.
class Surface {
  public:
    enum class Shape { cubic, linear };

    /// Columns [x0, x1), or every `step`th of them, of an image of `shape` ny, nx; beyond its last column that one's
    /// values.
    Surface(Image<const float> mesh, std::ptrdiff_t ny, std::ptrdiff_t nx, std::ptrdiff_t x0, std::ptrdiff_t x1,
            Shape shape, std::ptrdiff_t step = 1);

    /// Makes row y current. Its value in the i-th of the columns is sum(weights()[k] * rows()[k][i]), k = 0 to 3.
    void seek(std::ptrdiff_t y);
    const float* const* rows() const { return rows_; }
    const float* weights() const { return weights_; }
    std::ptrdiff_t width() const { return width_; }
    float value(std::ptrdiff_t i) const {
        return weights_[0] * rows_[0][i] + weights_[1] * rows_[1][i] + weights_[2] * rows_[2][i] +
               weights_[3] * rows_[3][i];
    }

    /// The value at one pixel (any column of the image).
    float at(std::ptrdiff_t y, std::ptrdiff_t x) const;

  private:
    struct Node {
        std::ptrdiff_t first; ///< mesh index of the node left of the pixel
        float weights[4];     ///< of the nodes first - 1 to first + 2
    };
    Node node(std::ptrdiff_t pixel, double cell) const;
    float mesh_at(std::ptrdiff_t j, std::ptrdiff_t i) const;
    void fill(std::ptrdiff_t j);
    const float* slot(std::ptrdiff_t j) const;

    Image<const float> mesh_;
    double cell_y_, cell_x_;
    std::ptrdiff_t width_;
    Shape shape_;
    std::vector<float> columns_[4];                               ///< weights of the four nodes about each column
    std::vector<std::pair<std::ptrdiff_t, std::ptrdiff_t>> runs_; ///< of columns between the same nodes: end, first
    std::vector<float> nodes_;                                    ///< one mesh row, with two nodes beyond either end
    std::vector<float> buffer_;                                   ///< four mesh rows, interpolated in x
    std::ptrdiff_t held_[4] = {-9, -9, -9, -9};                   ///< mesh index of each
    const float* rows_[4] = {};
    float weights_[4] = {};
};

/// Rows [y0, y0 + out.ny) and columns [x0, x0 + out.nx) of the surface of an image of shape ny, nx.
void render_background(Image<const float> mesh, std::ptrdiff_t ny, std::ptrdiff_t nx, std::ptrdiff_t y0,
                       std::ptrdiff_t x0, Image<float> out);

/// image - surface
void subtract_background(Image<const float> image, Image<const float> mesh, Image<float> out);

} // namespace fastack
