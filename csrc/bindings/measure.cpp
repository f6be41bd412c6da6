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

/// Lists of one length and numbers that make sense, or an error that says which does not.
StarField star_field(const FloatArray& image, const DoubleArray& xy, const DoubleArray& peak,
                     const DoubleArray& sky, const DoubleArray& noise, const ShapeTuple& shape, double radius,
                     double inverse_gain, double saturation) {
    StarField field;
    field.image = as_image(image, "image");
    require(xy.ndim() == 2 && xy.shape(1) == 2, "xy must have the shape (n, 2)");
    field.n = xy.shape(0);
    for (const DoubleArray* list : {&peak, &sky, &noise})
        require(list->ndim() == 1 && list->shape(0) == field.n, "peak, sky and noise must be as long as xy");
    field.xy = xy.data();
    field.peak = peak.data();
    field.sky = sky.data();
    field.noise = noise.data();
    const auto [a, b, c, eta, integrated] = shape;
    field.shape = {a, b, c, eta, integrated};
    require(a > 0 && field.shape.determinant() > 0, "shape: (a, b, c) must be positive definite");
    require(eta > 0 && eta < 1, "shape: eta must lie between 0 and 1");
    require(radius >= 1 && radius <= 200, "radius must lie between 1 and 200 pixels");
    require(inverse_gain >= 0 && std::isfinite(inverse_gain), "inverse_gain must be finite and not negative");
    field.radius = radius;
    field.inverse_gain = inverse_gain;
    field.saturation = std::isnan(saturation) ? std::numeric_limits<double>::infinity() : saturation;
    return field;
}

Span<const std::int64_t> as_rows(const Array<std::int64_t>& rows, std::ptrdiff_t n) {
    const Span<const std::int64_t> list = as_span(rows, "rows");
    for (const std::int64_t row : list)
        require(row >= 0 && row < n, "rows: beyond the list of stars");
    return list;
}

} // namespace
} // namespace fastack

void bind_measure(py::module_& m) {
    using namespace fastack;
    PYBIND11_NUMPY_DTYPE(StarFit, x, y, peak, sky, xy_err, peak_err, top, width, width_err, a, b, c, eta,
                         chi2, pixels, missing, saturated, neighbours, converged, padding);

    m.def(
        "star_rings",
        [](const FloatArray& image, const DoubleArray& xy, const DoubleArray& sky) {
            const StarField field = star_field(image, xy, sky, sky, sky, {1.0, 0.0, 1.0, 0.3, false}, 1, 0,
                                               std::numeric_limits<double>::quiet_NaN());
            auto fwhm = new_span<double>(field.n), peak = new_span<double>(field.n);
            double *widths = fwhm.mutable_data(), *peaks = peak.mutable_data();
            {
                py::gil_scoped_release release;
                star_rings(field, widths, peaks);
            }
            return std::pair(fwhm, peak);
        },
        "image"_a.noconvert(), "xy"_a.noconvert(), "sky"_a.noconvert(),
        "First guess of width and peak of stars.");
    m.def(
        "sky_annulus",
        [](const FloatArray& image, const DoubleArray& xy, double inner, double outer) {
            require(xy.ndim() == 2 && xy.shape(1) == 2, "xy must have the shape (n, 2)");
            require(0 <= inner && inner < outer && outer <= 1000,
                    "annulus: 0 <= inner < outer <= 1000 is needed");
            const Image<const float> view = as_image(image, "image");
            const std::ptrdiff_t n = xy.shape(0);
            auto level = new_span<double>(n), noise = new_span<double>(n);
            double *levels = level.mutable_data(), *noises = noise.mutable_data();
            const double* positions = xy.data();
            {
                py::gil_scoped_release release;
                sky_annulus(view, positions, n, inner, outer, levels, noises);
            }
            return std::pair(level, noise);
        },
        "image"_a.noconvert(), "xy"_a.noconvert(), "inner"_a, "outer"_a,
        "Median and scatter of the sky around stars.");
    m.def(
        "fit_stars",
        [](const FloatArray& image, const DoubleArray& xy, const DoubleArray& peak, const DoubleArray& sky,
           const DoubleArray& noise, const ShapeTuple& shape, double radius, double inverse_gain,
           double saturation, int passes, const std::optional<Array<std::int64_t>>& rows) {
            const StarField field =
                star_field(image, xy, peak, sky, noise, shape, radius, inverse_gain, saturation);
            std::vector<std::int64_t> every(rows ? 0 : field.n);
            std::iota(every.begin(), every.end(), 0);
            const Span<const std::int64_t> list =
                rows ? as_rows(*rows, field.n)
                     : Span<const std::int64_t>{every.data(), static_cast<std::ptrdiff_t>(every.size())};
            auto fits = new_span<StarFit>(field.n);
            StarFit* out = fits.mutable_data();
            py::gil_scoped_release release;
            fit_stars(field, list, passes, out);
            return fits;
        },
        "image"_a.noconvert(), "xy"_a.noconvert(), "peak"_a.noconvert(), "sky"_a.noconvert(),
        "noise"_a.noconvert(), "shape"_a, "radius"_a, "inverse_gain"_a, "saturation"_a, "passes"_a,
        "rows"_a.noconvert() = py::none(),         "Position, peak and sky of stars of one shape.");
    m.def(
        "fit_moffat",
        [](const FloatArray& image, const DoubleArray& xy, const DoubleArray& peak, const DoubleArray& sky,
           const DoubleArray& noise, const ShapeTuple& shape, double radius, double inverse_gain,
           double saturation, const Array<std::int64_t>& rows) {
            const StarField field =
                star_field(image, xy, peak, sky, noise, shape, radius, inverse_gain, saturation);
            const Span<const std::int64_t> list = as_rows(rows, field.n);
            auto fits = new_span<StarFit>(list.size);
            StarFit* out = fits.mutable_data();
            py::gil_scoped_release release;
            fit_moffat(field, list, out);
            return fits;
        },
        "image"_a.noconvert(), "xy"_a.noconvert(), "peak"_a.noconvert(), "sky"_a.noconvert(),
        "noise"_a.noconvert(), "shape"_a, "radius"_a, "inverse_gain"_a, "saturation"_a, "rows"_a.noconvert(),
        "Single stars with all parameters free.");
    m.def(
        "fit_shape",
        [](const FloatArray& image, const DoubleArray& xy, const DoubleArray& peak, const DoubleArray& sky,
           const DoubleArray& noise, const ShapeTuple& shape, double radius, double inverse_gain,
           double saturation, const Array<std::int64_t>& rows) -> std::pair<ShapeTuple, double> {
            const StarField field =
                star_field(image, xy, peak, sky, noise, shape, radius, inverse_gain, saturation);
            const Span<const std::int64_t> list = as_rows(rows, field.n);
            MoffatShape found;
            double squares;
            {
                py::gil_scoped_release release;
                squares = fit_shape(field, list, found);
            }
            return {ShapeTuple{found.a, found.b, found.c, found.eta, found.integrated}, squares};
        },
        "image"_a.noconvert(), "xy"_a.noconvert(), "peak"_a.noconvert(), "sky"_a.noconvert(),
        "noise"_a.noconvert(), "shape"_a, "radius"_a, "inverse_gain"_a, "saturation"_a, "rows"_a.noconvert(),
        "One shape for many stars.");
}
