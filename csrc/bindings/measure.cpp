#include "fastack/measure.hpp"

#include "bindings/arrays.hpp"

#include <numeric>
#include <vector>

#include <cmath>
#include <limits>
#include <tuple>

namespace fastack {
namespace {

using ShapeTuple = std::tuple<double, double, double, double, bool>;

MoffatShape as_shape(const ShapeTuple& shape) {
    const auto [a, b, c, eta, integrated] = shape;
    const MoffatShape made{a, b, c, eta, integrated};
    require(a > 0 && made.determinant() > 0, "shape: (a, b, c) must be positive definite");
    require(eta > 0 && eta < 1, "shape: eta must lie between 0 and 1");
    return made;
}

/// A field of stars and the arrays that it looks at.
struct HeldField {
    FloatArray image;
    DoubleArray xy, peak, sky, noise;
    StarField field;
};

/// Lists of one length and numbers that make sense, or an error that says which does not.
HeldField hold_field(const FloatArray& image, const DoubleArray& xy, const DoubleArray& peak, const DoubleArray& sky,
                     const DoubleArray& noise, const ShapeTuple& shape, double radius, double inverse_gain,
                     double saturation) {
    HeldField held{image, xy, peak, sky, noise, {}};
    StarField& field = held.field;
    field.image = as_image(image, "image");
    require(xy.ndim() == 2 && xy.shape(1) == 2, "xy must have the shape (n, 2)");
    field.n = xy.shape(0);
    for (const DoubleArray* list : {&peak, &sky, &noise})
        require(list->ndim() == 1 && list->shape(0) == field.n, "peak, sky and noise must be as long as xy");
    field.xy = xy.data();
    field.peak = peak.data();
    field.sky = sky.data();
    field.noise = noise.data();
    field.shape = as_shape(shape);
    require(radius >= 1 && radius <= 200, "radius must lie between 1 and 200 pixels");
    require(inverse_gain >= 0 && std::isfinite(inverse_gain), "inverse_gain must be finite and not negative");
    field.radius = radius;
    field.inverse_gain = inverse_gain;
    field.saturation = std::isnan(saturation) ? std::numeric_limits<double>::infinity() : saturation;
    return held;
}

Span<const std::int64_t> as_rows(const Array<std::int64_t>& rows, std::ptrdiff_t n) {
    const Span<const std::int64_t> list = as_span(rows, "rows");
    for (const std::int64_t row : list)
        require(row >= 0 && row < n, "rows: beyond the list of stars");
    return list;
}

Array<StarFit> fit_stars_of(const HeldField& held, int passes, const std::optional<Array<std::int64_t>>& rows) {
    std::vector<std::int64_t> every(rows ? 0 : held.field.n);
    std::iota(every.begin(), every.end(), 0);
    const Span<const std::int64_t> list =
        rows ? as_rows(*rows, held.field.n)
             : Span<const std::int64_t>{every.data(), static_cast<std::ptrdiff_t>(every.size())};
    auto fits = new_span<StarFit>(held.field.n);
    StarFit* out = fits.mutable_data();
    py::gil_scoped_release release;
    fit_stars(held.field, list, passes, out);
    return fits;
}

Array<StarFit> fit_moffat_of(const HeldField& held, const Array<std::int64_t>& rows) {
    const Span<const std::int64_t> list = as_rows(rows, held.field.n);
    auto fits = new_span<StarFit>(list.size);
    StarFit* out = fits.mutable_data();
    py::gil_scoped_release release;
    fit_moffat(held.field, list, out);
    return fits;
}

std::optional<std::pair<ShapeTuple, DoubleArray>> fit_shape_of(const HeldField& held, const Array<std::int64_t>& rows) {
    const Span<const std::int64_t> list = as_rows(rows, held.field.n);
    auto likelihood = new_span<double>(list.size);
    double* out = likelihood.mutable_data();
    MoffatShape found;
    bool converged;
    {
        py::gil_scoped_release release;
        converged = fit_shape(held.field, list, found, out);
    }
    if (!converged)
        return std::nullopt;
    return std::pair{ShapeTuple{found.a, found.b, found.c, found.eta, found.integrated}, likelihood};
}

std::pair<DoubleArray, DoubleArray> rings(const FloatArray& image, const DoubleArray& xy, const DoubleArray& sky) {
    const auto view = as_image(image, "image");
    require(xy.ndim() == 2 && xy.shape(1) == 2, "xy must have the shape (n, 2)");
    const std::ptrdiff_t n = xy.shape(0);
    require(sky.ndim() == 1 && sky.shape(0) == n, "sky must be as long as xy");
    auto fwhm = new_span<double>(n), peak = new_span<double>(n);
    double *widths = fwhm.mutable_data(), *peaks = peak.mutable_data();
    {
        py::gil_scoped_release release;
        star_rings(view, xy.data(), sky.data(), n, widths, peaks);
    }
    return {fwhm, peak};
}

std::pair<DoubleArray, DoubleArray> annulus(const FloatArray& image, const DoubleArray& xy, double inner,
                                            double outer) {
    require(xy.ndim() == 2 && xy.shape(1) == 2, "xy must have the shape (n, 2)");
    require(0 <= inner && inner < outer && outer <= 1000, "annulus: 0 <= inner < outer <= 1000 is needed");
    const Image<const float> view = as_image(image, "image");
    const std::ptrdiff_t n = xy.shape(0);
    auto level = new_span<double>(n), noise = new_span<double>(n);
    double *levels = level.mutable_data(), *noises = noise.mutable_data();
    {
        py::gil_scoped_release release;
        sky_annulus(view, xy.data(), n, inner, outer, levels, noises);
    }
    return {level, noise};
}

} // namespace
} // namespace fastack

void bind_measure(py::module_& m) {
    using namespace fastack;
    PYBIND11_NUMPY_DTYPE(StarFit, x, y, peak, sky, xy_err, peak_err, top, width, width_err, a, b, c, eta, chi2, pixels,
                         missing, saturated, neighbours, converged, padding);

    m.def(
        "width_over_pixel",
        [](const ShapeTuple& shape, double angle, double width) {
            return width_over_pixel(as_shape(shape), angle, width);
        },
        "shape"_a, "angle"_a, "width"_a, "Full width at half maximum of a profile's mean over a pixel.");
    m.def("star_rings", &rings, "image"_a.noconvert(), "xy"_a.noconvert(), "sky"_a.noconvert(),
          "First guess of width and peak of stars.");
    m.def("sky_annulus", &annulus, "image"_a.noconvert(), "xy"_a.noconvert(), "inner"_a, "outer"_a,
          "Median and scatter of the sky around stars.");
    py::class_<HeldField>(m, "StarField", "An image and all stars known in it, to be fitted.")
        .def(py::init(&hold_field), "image"_a.noconvert(), "xy"_a.noconvert(), "peak"_a.noconvert(),
             "sky"_a.noconvert(), "noise"_a.noconvert(), "shape"_a, "radius"_a, "inverse_gain"_a, "saturation"_a)
        .def("fit_stars", &fit_stars_of, "passes"_a, "rows"_a.noconvert() = py::none(),
             "Position, peak and sky of stars of one shape.")
        .def("fit_moffat", &fit_moffat_of, "rows"_a.noconvert(), "Single stars with all parameters free.")
        .def("fit_shape", &fit_shape_of, "rows"_a.noconvert(), "One shape for many stars.");
}
