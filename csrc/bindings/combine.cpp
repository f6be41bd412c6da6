#include "fastack/combine.hpp"

#include "bindings/arrays.hpp"

#include <array>

namespace {

using namespace fastack;

template <class T> using Maybe = std::optional<Array<T>>;

/// xy, flux, radius, profile, order, step, share of CombineStars.
using StarArrays = std::tuple<DoubleArray, FloatArray, FloatArray, FloatArray, Array<int32_t>, float, FloatArray>;

Reject reject_of(const std::string& name) {
    static constexpr std::array<const char*, 10> names = {"none", "minmax", "percentile", "sigma", "sigma-median",
                                                          "mad", "winsorized", "linear-fit", "esd", "noise"};
    for (size_t k = 0; k < names.size(); ++k)
        if (name == names[k])
            return static_cast<Reject>(k);
    throw std::invalid_argument("unknown rejection " + name);
}

/// (n, ny, nx), or panels of 64 columns: (ny, panels, n, 64).
template <class T> Panels<const T> as_panels(const Array<T>& a, const char* name) {
    if (a.ndim() == 4) {
        require(a.shape(3) == PANEL, std::string(name) + " must have panels of 64 columns");
        const ptrdiff_t ny = a.shape(0), panels = a.shape(1), n = a.shape(2);
        return {a.data(), n, ny, panels * PANEL, PANEL, panels * n * PANEL, n * PANEL};
    }
    const Stack<const T> stack = as_stack(a, name);
    return {stack.data, stack.n, stack.ny, stack.nx, stack.ny * stack.nx, stack.nx, PANEL};
}

template <class T> Panels<const T> panels_like(const Maybe<T>& a, const FloatArray& cube, const char* name) {
    if (!a)
        return {};
    require(a->ndim() == cube.ndim() && std::equal(cube.shape(), cube.shape() + cube.ndim(), a->shape()),
            std::string(name) + " must have the shape of the cube");
    return as_panels(*a, name);
}

py::tuple combine_window(const FloatArray& cube, ptrdiff_t columns, const Maybe<uint8_t>& factor, const Maybe<float>& variance,
                         const FloatArray& constants, bool with_model, float pedestal, const Maybe<float>& shade,
                         std::pair<ptrdiff_t, ptrdiff_t> shade_origin, std::pair<ptrdiff_t, ptrdiff_t> origin,
                         std::array<ptrdiff_t, 4> window, int radius, const std::string& reject, bool median,
                         std::array<float, 5> kappa, int grow, int rounds, std::pair<int, int> minmax,
                         std::pair<float, float> percentile, float max_outliers, const FloatArray& esd_lambda,
                         const FloatArray& median_ratio, const std::optional<StarArrays>& stars, float star_error) {
    CombineInput input;
    input.cube = as_panels(cube, "cube");
    input.factor = panels_like(factor, cube, "factor");
    input.variance = panels_like(variance, cube, "variance");
    require(columns <= input.cube.nx, "there are fewer columns than that");
    input.cube.nx = columns;
    std::tie(input.y, input.x) = origin;
    input.y0 = window[0], input.y1 = window[1], input.x0 = window[2], input.x1 = window[3];
    input.radius = radius;
    require(radius >= 1 && radius <= 3, "radius must be 1, 2 or 3");
    require(0 <= input.y0 && input.y0 <= input.y1 && input.y1 <= input.cube.ny && 0 <= input.x0 &&
                input.x0 <= input.x1 && input.x1 <= input.cube.nx,
            "window must lie within the cube");
    const ptrdiff_t n = input.cube.n;
    require(n >= 1 && n <= 65535, "the cube must hold 1 to 65535 frames");
    if (shade) {
        input.shade = as_stack(*shade, "shade");
        require(input.shade.n == n && input.shade.ny > 0 && input.shade.nx > 0, "shade must have one map per frame");
        std::tie(input.shade_y, input.shade_x) = shade_origin;
    }
    const Image<const float> rows = as_image(constants, "constants");
    require(rows.ny == 7 && rows.nx == n, "constants must have the shape (7, n)");
    CombineFrames frames;
    frames.n = int(n);
    frames.pedestal = pedestal;
    frames.weight = rows.row(0);
    frames.shot = with_model ? rows.row(1) : nullptr;
    frames.sky = rows.row(2);
    frames.floor = rows.row(3);
    frames.seeing = rows.row(4);
    frames.tolerance = rows.row(5);
    frames.jitter = rows.row(6);
    for (ptrdiff_t i = 0; i < n; ++i) {
        frames.mean_shot += rows(1, i) / float(n);
        frames.mean_floor += (rows(1, i) * std::max(rows(2, i), 0.0f) + rows(3, i)) / float(n);
    }
    if (stars) {
        const auto& [xy, flux, radius, profile, order, step, share] = *stars;
        input.stars = {as_image(xy, "xy"),           as_span(flux, "flux"),   as_span(radius, "radius"),
                       as_image(profile, "profile"), as_span(order, "order"), step,
                       as_image(share, "share")};
        const CombineStars& s = input.stars;
        require(s.xy.ny == s.flux.size && s.xy.nx == 2 && s.radius.size == s.flux.size && s.profile.nx >= 2 &&
                    s.profile.ny == s.share.ny + 1 && s.order.size == s.share.ny && s.share.nx == n && step > 0,
                "the stars' arrays do not fit together");
        frames.components = int(s.share.ny);
        frames.share = s.share.data;
    }
    CombineSetup setup;
    setup.reject = reject_of(reject);
    setup.median = median;
    setup.kappa_low = kappa[0], setup.kappa_high = kappa[1], setup.kappa_pair = kappa[2], setup.kappa_grow = kappa[3];
    setup.kappa_group = kappa[4];
    setup.grow = grow;
    setup.rounds = rounds;
    std::tie(setup.n_low, setup.n_high) = minmax;
    std::tie(setup.percentile_low, setup.percentile_high) = percentile;
    setup.max_outliers = max_outliers;
    setup.star_error = star_error;
    require(esd_lambda.size() == n + 1 && median_ratio.size() == n + 1, "tables must have n + 1 entries");
    setup.esd_lambda = esd_lambda.data();
    setup.median_ratio = median_ratio.data();
    require(setup.reject != Reject::noise || with_model || input.variance, "noise rejection needs a noise model");

    const ptrdiff_t ny = input.y1 - input.y0, nx = input.x1 - input.x0;
    auto data = new_image<float>(ny, nx), result_variance = new_image<float>(ny, nx),
         background = new_image<float>(ny, nx);
    auto count = new_image<uint16_t>(ny, nx), low = new_image<uint16_t>(ny, nx), high = new_image<uint16_t>(ny, nx);
    const CombineOutput output{out_image(data), out_image(result_variance), out_image(background), out_image(count), out_image(low),
                               out_image(high)};
    {
        py::gil_scoped_release release;
        combine(setup, frames, input, output);
    }
    return py::make_tuple(data, result_variance, background, count, low, high);
}

} // namespace

void bind_combine(py::module_& m) {
    m.def("combine", &combine_window, "cube"_a.noconvert(), "columns"_a, "factor"_a.noconvert().none(true),
          "variance"_a.noconvert().none(true), "constants"_a.noconvert(), "with_model"_a, "pedestal"_a,
          "shade"_a.noconvert().none(true), "shade_origin"_a, "origin"_a, "window"_a, "radius"_a, "reject"_a,
          "median"_a, "kappa"_a, "grow"_a, "rounds"_a, "minmax"_a, "percentile"_a, "max_outliers"_a,
          "esd_lambda"_a.noconvert(), "median_ratio"_a.noconvert(), "stars"_a.none(true), "star_error"_a,
          "Reject outliers and average a window of a cube: data, variance, background variance, count, low, high.");
    m.def(
        "combine_reach",
        [](int n, float kappa_group, int grow) {
            return combine_reach(3, combine_margin(combine_groups(n, kappa_group, grow), grow));
        },
        "n"_a, "kappa_group"_a, "grow"_a, "How far around a pixel of n frames its neighbours count.");
}
