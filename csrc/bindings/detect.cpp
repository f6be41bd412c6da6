#include "fastack/detect.hpp"

#include "bindings/arrays.hpp"

namespace {

using namespace fastack;

Sky as_sky(const FloatArray& level, const FloatArray& noise) {
    const Sky sky{as_image(level, "level"), as_image(noise, "noise")};
    require(sky.level.ny > 0 && sky.level.nx > 0, "the background has no cells");
    require(sky.level.ny == sky.noise.ny && sky.level.nx == sky.noise.nx, "level and noise differ in shape");
    return sky;
}

Array<BrightPixel> as_array(const std::vector<BrightPixel>& bright) {
    auto out = new_span<BrightPixel>(static_cast<std::ptrdiff_t>(bright.size()));
    std::copy(bright.begin(), bright.end(), out.mutable_data());
    return out;
}

py::tuple detect(const FloatArray& image, const FloatArray& level, const FloatArray& noise, double fwhm, double narrow,
                 float threshold, float saturation, double widest) {
    const auto view = as_image(image, "image");
    const Sky sky = as_sky(level, noise);
    require(fwhm > 0 && narrow > 0, "fwhm and narrow must be positive");
    require(threshold > 0, "threshold must be positive");
    require(widest > 0, "widest must be positive");
    std::vector<Detection> found;
    BrightPixels bright;
    bright.widest = widest;
    {
        py::gil_scoped_release go;
        found = detect_stars(view, sky, {fwhm, narrow, threshold, saturation}, &bright);
    }
    py::array_t<double> table({static_cast<py::ssize_t>(found.size()), py::ssize_t{8}});
    double* out = table.mutable_data();
    for (const Detection& d : found)
        for (const double value : {d.x, d.y, double(d.flux), double(d.flux_err), double(d.peak), double(d.sky),
                                   double(d.sharpness), double(d.flags)})
            *out++ = value;
    return py::make_tuple(table, as_array(bright.list));
}

std::pair<double, double> widths(const FloatArray& image, const FloatArray& level, const FloatArray& noise,
                                 float saturation) {
    const auto view = as_image(image, "image");
    const Sky sky = as_sky(level, noise);
    py::gil_scoped_release go;
    const Widths found = find_widths(view, sky, saturation);
    return {found.mean, found.narrow};
}

Array<BrightPixel> bright(const FloatArray& image, const FloatArray& level, const FloatArray& noise) {
    const auto view = as_image(image, "image");
    const Sky sky = as_sky(level, noise);
    std::vector<BrightPixel> found;
    {
        py::gil_scoped_release go;
        found = bright_pixels(view, sky);
    }
    return as_array(found);
}

Array<std::int32_t> hits(const FloatArray& image, const Array<BrightPixel>& bright, double narrow, float saturation,
                         float shot) {
    const auto view = as_image(image, "image");
    const Span<const BrightPixel> list = as_span(bright, "bright");
    for (const BrightPixel& p : list)
        require(p.x >= 0 && p.x < view.nx && p.y >= 0 && p.y < view.ny, "bright: beyond the image");
    require(narrow > 0, "narrow must be positive");
    std::vector<Pixel> found;
    {
        py::gil_scoped_release go;
        found = find_hits(view, list, {narrow, saturation, shot});
    }
    auto pixels = new_image<std::int32_t>(static_cast<std::ptrdiff_t>(found.size()), 2);
    std::int32_t* out = pixels.mutable_data();
    for (const Pixel& p : found) {
        *out++ = p.x;
        *out++ = p.y;
    }
    return pixels;
}

} // namespace

void bind_detect(py::module_& m) {
    PYBIND11_NUMPY_DTYPE(BrightPixel, x, y, sky, noise);
    m.def("detect", &detect, "image"_a.noconvert(), "level"_a.noconvert(), "noise"_a.noconvert(), "fwhm"_a, "narrow"_a,
          "threshold"_a, "saturation"_a, "widest"_a);
    m.def("detect_widths", &widths, "image"_a.noconvert(), "level"_a.noconvert(), "noise"_a.noconvert(),
          "saturation"_a);
    m.def("detect_bright", &bright, "image"_a.noconvert(), "level"_a.noconvert(), "noise"_a.noconvert());
    m.def("detect_hits", &hits, "image"_a.noconvert(), "bright"_a.noconvert(), "narrow"_a, "saturation"_a, "shot"_a);
}
