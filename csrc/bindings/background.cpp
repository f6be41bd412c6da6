#include "fastack/background.hpp"

#include "bindings/arrays.hpp"

namespace {

using namespace fastack;
using Mask = Array<unsigned char>;

py::tuple estimate(const FloatArray& image, const std::optional<Mask>& mask, std::ptrdiff_t cell, float clip,
                   int rounds, std::ptrdiff_t row_step) {
    const auto view = as_image(image, "image");
    const auto masked = as_image(mask, "mask");
    require(view.ny > 0 && view.nx > 0, "image has no pixels");
    require(!masked || (masked.ny == view.ny && masked.nx == view.nx), "mask and image differ in shape");
    require(cell > 0, "cell must be positive");
    require(clip > 0 && rounds > 0 && row_step > 0, "clip, rounds and row_step must be positive");
    const auto down = make_cells(view.ny, cell), across = make_cells(view.nx, cell);
    auto level = new_image<float>(down.n, across.n), noise = new_image<float>(down.n, across.n);
    const auto out_level = out_image(level), out_noise = out_image(noise);
    {
        py::gil_scoped_release go;
        estimate_background(view, masked, {clip, rounds}, row_step, out_level, out_noise);
    }
    return py::make_tuple(level, noise);
}

FloatArray render(const FloatArray& mesh, std::pair<std::ptrdiff_t, std::ptrdiff_t> shape, std::ptrdiff_t y0,
                  std::ptrdiff_t y1, std::ptrdiff_t x0, std::ptrdiff_t x1) {
    const auto nodes = as_image(mesh, "mesh");
    require(nodes.ny > 0 && nodes.nx > 0, "mesh has no points");
    require(0 <= y0 && y0 <= y1 && y1 <= shape.first && 0 <= x0 && x0 <= x1 && x1 <= shape.second,
            "window reaches beyond the image");
    auto image = new_image<float>(y1 - y0, x1 - x0);
    const auto out = out_image(image);
    {
        py::gil_scoped_release go;
        render_background(nodes, shape.first, shape.second, y0, x0, out);
    }
    return image;
}

FloatArray subtract(const FloatArray& image, const FloatArray& mesh) {
    const auto view = as_image(image, "image");
    const auto nodes = as_image(mesh, "mesh");
    require(nodes.ny > 0 && nodes.nx > 0, "mesh has no points");
    auto result = new_image<float>(view.ny, view.nx);
    const auto out = out_image(result);
    {
        py::gil_scoped_release go;
        subtract_background(view, nodes, out);
    }
    return result;
}

double noise_of_pixel(const FloatArray& image, std::ptrdiff_t some_rows) {
    const auto view = as_image(image, "image");
    require(some_rows > 0, "rows must be positive");
    py::gil_scoped_release go;
    return pixel_noise(view, some_rows);
}

} // namespace

void bind_background(py::module_& m) {
    m.def("background_estimate", &estimate, "image"_a.noconvert(), "mask"_a.noconvert().none(true), "cell"_a, "clip"_a,
          "rounds"_a, "row_step"_a);
    m.def("background_render", &render, "mesh"_a.noconvert(), "shape"_a, "y0"_a, "y1"_a, "x0"_a, "x1"_a);
    m.def("background_subtract", &subtract, "image"_a.noconvert(), "mesh"_a.noconvert());
    m.def("pixel_noise", &noise_of_pixel, "image"_a.noconvert(), "rows"_a);
}
