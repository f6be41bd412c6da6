#include "fastack/resample.hpp"

#include "bindings/arrays.hpp"

#include <algorithm>
#include <cmath>

namespace {

using namespace fastack;

using Four = std::array<std::ptrdiff_t, 4>;
using Pair = std::array<std::ptrdiff_t, 2>;

Kernel kernel_named(const std::string& name) {
    constexpr const char* names[] = {"nearest",  "bilinear", "bicubic", "lanczos2",
                                     "lanczos3", "lanczos4", "area"};
    const auto* const found = std::find(std::begin(names), std::end(names), name);
    require(found != std::end(names), "unknown kernel '" + name + "'");
    return static_cast<Kernel>(found - std::begin(names));
}

Map as_map(const DoubleArray& cx, const DoubleArray& cy, std::array<double, 2> origin, double scale) {
    const Span<const double> x = as_span(cx, "cx"), y = as_span(cy, "cy");
    require(x.size == y.size && (x.size == 3 || x.size == 6 || x.size == 10),
            "cx and cy must have 3, 6 or 10 terms");
    constexpr int power[] = {0, 1, 1, 2, 2, 2, 3, 3, 3, 3};
    Map map;
    map.origin_x = origin[0], map.origin_y = origin[1];
    for (std::ptrdiff_t k = 0; k < x.size; ++k) {
        double unit = 1;
        for (int n = 0; n < power[k]; ++n)
            unit *= scale;
        map.x[k] = x[k] / unit, map.y[k] = y[k] / unit;
        require(std::isfinite(map.x[k]) && std::isfinite(map.y[k]),
                "the transform has coefficients that are not finite");
    }
    return map;
}

Box as_box(const Four& tile) {
    return {tile[0], tile[1], tile[2], tile[3]};
}

/// Part of a larger plane: its rows may lie apart.
template <class T> using Plane = py::array_t<T, 0>;

template <class T> void require_rows(const Plane<T>& a, const char* name) {
    constexpr auto size = static_cast<std::ptrdiff_t>(sizeof(T));
    const auto last = a.ndim() - 1;
    if (a.shape(last) > 1 && a.strides(last) != size)
        throw py::type_error(std::string(name) + " must be contiguous along its rows");
    for (py::ssize_t axis = 0; axis < last; ++axis)
        if (a.strides(axis) % size != 0)
            throw py::type_error(std::string(name) + " must have rows that are whole elements apart");
}

template <class T> Image<T> tile_plane(std::optional<Plane<T>>& a, Box tile, const char* name) {
    if (!a)
        return {};
    require(a->ndim() == 2 && a->shape(0) == tile.y1 - tile.y0 && a->shape(1) == tile.x1 - tile.x0,
            std::string(name) + " must have the tile's shape");
    if (a->size() == 0)
        return {};
    require_rows(*a, name);
    return {a->mutable_data(), a->shape(0), a->shape(1), a->strides(0) / static_cast<std::ptrdiff_t>(sizeof(T))};
}

/// The same, or in panels: (rows, panels, 64).
template <class T> PanelImage<T> panel_plane(std::optional<Plane<T>>& a, Box tile, const char* name) {
    if (!a || a->ndim() != 3) {
        const Image<T> plain = tile_plane(a, tile, name);
        return {plain.data, plain.ny, plain.nx, plain.stride, PANEL};
    }
    const std::ptrdiff_t nx = tile.x1 - tile.x0;
    require(a->shape(0) == tile.y1 - tile.y0 && a->shape(1) == (nx + PANEL - 1) / PANEL && a->shape(2) == PANEL,
            std::string(name) + " must have the tile's shape, or that of its panels");
    require_rows(*a, name);
    constexpr auto size = static_cast<std::ptrdiff_t>(sizeof(T));
    return {a->mutable_data(), a->shape(0), nx, a->strides(0) / size, a->strides(1) / size};
}

} // namespace

void bind_resample(py::module_& m) {
    m.def(
        "input_window",
        [](const DoubleArray& cx, const DoubleArray& cy, std::array<double, 2> origin, double unit,
           const Four& tile, const Pair& shape, const std::string& kernel) -> std::optional<Four> {
            const Box b = input_window(as_map(cx, cy, origin, unit), as_box(tile), shape[0], shape[1],
                                       kernel_named(kernel));
            return b.empty() ? std::nullopt : std::optional<Four>({b.y0, b.y1, b.x0, b.x1});
        },
        "cx"_a.noconvert(), "cy"_a.noconvert(), "origin"_a, "unit"_a, "tile"_a, "shape"_a, "kernel"_a);
    m.def(
        "resample_tile",
        [](const FloatArray& section, const Pair& section_origin, const Pair& frame_shape,
           const DoubleArray& cx, const DoubleArray& cy, std::array<double, 2> origin, double unit,
           const Four& tile, const std::string& kernel, float max_lost, float scale, float offset, float sky,
           float level, std::optional<Plane<float>> out, std::optional<Plane<std::uint8_t>> factor,
           const std::optional<Array<std::int32_t>>& saturated,
           std::optional<Plane<std::uint16_t>> saturated_count, std::optional<Plane<std::uint8_t>> flags,
           const std::optional<FloatArray>& sky_mesh, const Four& sky_area, bool square) {
            const Box box = as_box(tile);
            const Map map = as_map(cx, cy, origin, unit);
            Section from{as_image(section, "section"),
                         section_origin[0],
                         section_origin[1],
                         frame_shape[0],
                         frame_shape[1],
                         scale,
                         offset,
                         sky,
                         level,
                         {},
                         as_image(sky_mesh, "sky_mesh"),
                         sky_area[1] - sky_area[0],
                         sky_area[3] - sky_area[2],
                         sky_area[0],
                         sky_area[2]};
            require(!sky_mesh || (from.sky_mesh.ny > 0 && from.sky_mesh.nx > 0), "sky_mesh has no points");
            require(!sky_mesh || (sky_area[0] <= box.y0 && box.y1 <= sky_area[1] && sky_area[2] <= box.x0 &&
                                  box.x1 <= sky_area[3]),
                    "the tile reaches beyond the sky's area");
            if (saturated) {
                require(saturated->ndim() == 2 && saturated->shape(1) == 2,
                        "saturated must have shape (k, 2)");
                from.saturated = {saturated->data(), saturated->size()};
            }
            require(out.has_value(), "out is needed");
            require(!factor || factor->ndim() == out->ndim(), "out and factor must both be plain or in panels");
            const Resampled to{panel_plane(out, box, "out"), panel_plane(factor, box, "factor"),
                               tile_plane(flags, box, "flags"),
                               tile_plane(saturated_count, box, "saturated_count")};
            const ResampleHow how{kernel_named(kernel), max_lost, square};
            py::gil_scoped_release release;
            resample_tile(from, map, box, how, to);
        },
        "section"_a.noconvert(), "section_origin"_a, "frame_shape"_a, "cx"_a.noconvert(), "cy"_a.noconvert(),
        "origin"_a, "unit"_a, "tile"_a, "kernel"_a, "max_lost"_a, "scale"_a, "offset"_a, "sky"_a, "level"_a,
        "out"_a.noconvert(), "factor"_a.noconvert(), "saturated"_a.noconvert(),
        "saturated_count"_a.noconvert(), "flags"_a.noconvert(), "sky_mesh"_a.noconvert(), "sky_area"_a, "square"_a);
}
